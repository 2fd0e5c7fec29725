"""The closed form of a choice in which some groups keep nothing: what else goes with them.

What no longer depends on the inputs goes, and so does what is no longer read. All constants of a branch that is gone are
neutral in the masked original, its last bias and its normalisation too; so its output is zero everywhere, and the sum behind
it is its other operand, exactly. What an op makes of such operands is passed in; where that is not sure, the choice is
refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush

import numpy as np

from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ties.balance import numbered
from agmc_onnx.ties.groups import Channels, Group

_ZERO, _EMPTY = 1, 2  # zero everywhere; no entries. What is neither is live


@dataclass(frozen=True, eq=False)
class Closed:
    """What goes where some groups keep nothing.

    Attributes:
        groups: Numbers of the groups that keep nothing: those asked for, and those that go with them.
        gone: Numbers of the nodes that go.
        stands_for: For values that go although they are read: the value that has their place.
        is_identity: Numbers of the nodes that only hand on their operand `stands_for` names: what they make is a graph output.
        inputs: For nodes that lose operands, the positions that stay.
        outputs: For nodes that lose outputs, the positions that stay.
        tensors: Constants that go.
        neutral: Those of them that are neutral in the masked original: what has units, and what must be.
        why_not: Why this choice is not possible, or None.
    """

    groups: frozenset[int]
    gone: frozenset[int] = frozenset()
    stands_for: Mapping[str, str] = field(default_factory=dict)
    is_identity: frozenset[int] = frozenset()
    inputs: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    outputs: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    tensors: frozenset[str] = frozenset()
    neutral: frozenset[str] = frozenset()
    why_not: str | None = None


@dataclass(frozen=True)
class Branch:
    """Nodes that may go together; one decision.

    Attributes:
        name: Of its first group.
        groups: Groups that keep nothing when it is gone, ascending.
        gone: First outputs of the nodes that go, in the order of the network.
    """

    name: str
    groups: tuple[int, ...]
    gone: tuple[str, ...]


def now_for(graph: Graph, closed: Closed, repeats: Callable[[Node, Node | None], bool]) -> dict[str, str]:
    """Return, for values that have the place of others now, which value of the original they should be.

    Where a branch is gone, what fed its sum is read as the sum; so that is what it should be near to. A value that is read as
    two is left out.

    Args:
        graph: The whole graph.
        closed: What is gone.
        repeats: Whether a node changes nothing behind another: what stands before both then has the same place.
    """

    def is_read(value: str) -> bool:
        return value in graph.outputs or any(
            user.index not in closed.gone for user, _ in graph.consumers.get(value, ())
        )

    places: dict[str, list[str]] = {}
    for gone, standing in closed.stands_for.items():
        places.setdefault(standing, [standing]).append(gone)
    found = {}
    for standing, names in places.items():
        read = [name for name in names if is_read(name)]
        if len(read) != 1 or read[0] == standing:
            continue
        found[standing] = read[0]
        before, after = graph.producer.get(standing), graph.producer[read[0]]
        if before is not None and repeats(after, before) and len(graph.consumers[before.inputs[0]]) == 1:
            found[before.inputs[0]] = after.inputs[0]
    return found


class Closer:
    """Closes one choice after another for one analysed graph; what was closed is remembered.

    Attributes:
        channels: The analysis.
    """

    def __init__(
        self,
        channels: Channels,
        when_empty: Callable[[Node], tuple[str, Sequence[Sequence[int]]] | None],
        repeats: Callable[[Node, Node | None], bool],
    ) -> None:
        """Note which groups stand on which values.

        Args:
            channels: The analysis.
            when_empty: What a node gives where operands are gone: kind and constants to neutralise (`ops.vanish.Vanishing`), or
                None where that is not sure.
            repeats: Whether a node changes nothing behind another.
        """
        self.channels, self._when_empty, self._repeats = channels, when_empty, repeats
        graph = channels.graph
        group_of = numbered([group.units for group in (*channels.groups, *channels.frozen)], channels.n_units)
        self._on: dict[str, set[int]] = {}  # groups on a value
        self._axes: dict[frozenset[int], list[str]] = {}  # values that have an axis with units of these groups alone
        n_groups = len(channels.groups)
        for (value, _), axis in channels.axes.items():
            found = frozenset(np.unique(group_of[axis.units]).tolist())
            self._on.setdefault(value, set()).update(found)
            if found and min(found) >= 0 and max(found) < n_groups:
                self._axes.setdefault(found, []).append(value)
        self._values: list[list[str]] = [[] for _ in range(n_groups + len(channels.frozen))]
        self._sources: list[list[Node]] = [[] for _ in range(n_groups)]
        for value, groups in self._on.items():
            for g in groups - {-1}:
                if value not in graph.weights:
                    self._values[g].append(value)
        for node in graph.nodes:
            computed = [name for name in node.inputs if name and name not in graph.weights]
            before = set().union(*(self._on.get(name, ()) for name in computed))
            made = set().union(*(self._on.get(name, ()) for name in node.outputs))
            for g in made - before - {-1} if computed else ():
                if g < n_groups:
                    self._sources[g].append(node)
        inputs = {name: 1 << i for i, name in enumerate(graph.inputs)}
        self.depends = self.dependence(inputs, range(len(graph.nodes)), lambda node: node.inputs, {})
        self.idle = [  # what nobody reads stays, as it does where channels go
            node.outputs[0]
            for node in graph.nodes
            if node.outputs[0]
            and not any(
                name in graph.consumers or name in graph.captured or name in graph.outputs for name in node.outputs
            )
        ]
        self.first_live = _reached(graph, self.idle)
        self._known: dict[frozenset[int], Closed] = {}

    def __call__(self, groups: Iterable[int]) -> Closed:
        """Return the closed form of some groups that keep nothing; `why_not` says where that is not possible."""
        asked = frozenset(groups)
        if asked not in self._known:
            self._known[asked] = self._close(asked)
        return self._known[asked]

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """What may go, each alone, in the order of the network."""
        found: dict[frozenset[int], Branch] = {}
        for number, group in enumerate(self.channels.groups):
            closed = self({number})
            if closed.why_not is None and closed.gone and closed.gone not in found:
                nodes = [self.channels.graph.nodes[i] for i in sorted(closed.gone)]
                gone = tuple(next(filter(None, node.outputs)) for node in nodes)
                found[closed.gone] = Branch(group.name, tuple(sorted(closed.groups)), gone)
        return tuple(found.values())

    @property
    def why_not(self) -> dict[str, str]:
        """Why groups may not keep nothing, by name."""
        groups = self.channels.groups
        return {g.name: why for i, g in enumerate(groups) if (why := self({i}).why_not) is not None}

    def possible(self, branches: Iterable[int], worth: Sequence[float]) -> frozenset[int]:
        """Return which branches may go together: all, or as many as possible, those of least worth being put back.

        Args:
            branches: Numbers of `branches`.
            worth: Of every branch, what is saved without it.
        """
        asked = sorted(branches, key=lambda b: (-worth[b], b))
        taken: list[int] = asked
        if self.of(asked).why_not is not None:
            taken = []
            for one in asked:
                if self.of([*taken, one]).why_not is None:
                    taken.append(one)
        return frozenset(taken)

    def of(self, branches: Iterable[int]) -> Closed:
        """Return the closed form of some branches, by number."""
        return self({group for b in branches for group in self.branches[b].groups})

    def dependence(
        self,
        known: Mapping[str, int],
        changed: Iterable[int],
        read: Callable[[Node], Iterable[str]],
        state: Mapping[str, int],
        resolved: Callable[[str], str] = lambda value: value,
    ) -> dict[str, int]:
        """Return for every value which inputs it depends on, as bits; sizes are no dependence.

        Args:
            known: The same, of values that no node makes or before some nodes changed.
            changed: Numbers of these nodes.
            read: The operands of a node that count.
            state: Values that are zero or empty.
            resolved: What has the place of a value.
        """
        graph, found = self.channels.graph, dict(known)

        def visit(number: int) -> Iterable[int]:
            node, bits = graph.nodes[number], 0
            if (self._when_empty(node) or ("",))[0] != "size":
                for name in read(node):
                    bits |= found.get(resolved(name), 0)
            now = {name: 0 if state.get(name) else bits for name in node.outputs if name}
            differing = [name for name, one in now.items() if found.get(name) != one]
            found.update(now)
            return _users(graph, differing)

        _in_order(changed, visit)
        return found

    # -- one choice

    def _close(self, asked: frozenset[int]) -> Closed:
        state = _State(self)
        state.lose(asked)
        while not state.lost and (more := state.followers()):
            state.lose(more)
        return state.closed()


class _State:
    """Values and nodes where some groups keep nothing."""

    def __init__(self, owner: Closer) -> None:
        self.owner, self.graph = owner, owner.channels.graph
        self.groups: set[int] = set()
        self.state: dict[str, int] = {}
        self.stands: dict[str, str] = {}
        self.inputs: dict[int, tuple[int, ...]] = {}
        self.outputs: dict[int, tuple[int, ...]] = {}
        self.identity: set[int] = set()
        self.unsure: dict[int, str] = {}
        self.needs: dict[str, list[list[str]]] = {}  # constants of which one of each list must be neutral
        self.dropped: dict[int, list[str]] = {}  # zeros that a sum no longer adds
        self.empty: set[str] = set()
        self.visited: set[int] = set()

    def lose(self, more: Set[int]) -> None:
        """Let more groups keep nothing: nodes that this reaches are looked at, again where they were before."""
        self.groups |= more
        empty = {value for axis, values in self.owner._axes.items() if axis <= self.groups for value in values}
        fresh, self.empty = empty - self.empty, empty
        made = [self.graph.producer[name].index for name in fresh if name in self.graph.producer]
        weights = [name for name in fresh if name in self.graph.weights]
        self.visited |= _in_order([*made, *_users(self.graph, weights)], self._visited)
        self.gone = self._no_longer_read()
        self.lost = [value for value in (*self.graph.outputs, *self.graph.captured) if self.state.get(value)]

    def resolved(self, value: str) -> str:
        """Return the value that has the place of another."""
        while value in self.stands:
            value = self.stands[value]
        return value

    def _read(self, node: Node) -> list[str]:
        return [node.inputs[i] for i in self.inputs.get(node.index, range(len(node.inputs)))]

    def stands_behind(self, node: Node) -> str:
        """Return the operand that an Identity hands on."""
        return self.resolved(node.inputs[self.inputs[node.index][0]])

    def _of(self, value: str) -> int:
        value = self.resolved(value)
        return self.state.get(value, _EMPTY if value in self.graph.weights and value in self.empty else 0)

    def _visited(self, number: int) -> Iterable[int]:
        """Visit a node, and return the numbers of those that read what it no longer gives as it did."""
        node = self.graph.nodes[number]
        made = [name for name in node.outputs if name]
        before = [(self.state.pop(name, 0), self.stands.pop(name, "")) for name in made]
        for known in (self.inputs, self.outputs, self.unsure, self.dropped):
            known.pop(number, None)
        for name in made:
            self.needs.pop(name, None)
        self.identity.discard(number)
        self._visit(node)
        now = [(self.state.get(name, 0), self.stands.get(name, "")) for name in made]
        return _users(self.graph, [name for i, name in enumerate(made) if now[i] != before[i]])

    def _no_longer_read(self) -> set[int]:
        """Return the numbers of the nodes that outputs, subgraphs and idle values depended on, and no longer do."""
        graph, first_live, gone = self.graph, self.owner.first_live, set[int]()
        idle = [name for name in self.owner.idle if not self.state.get(name)]
        roots = {*graph.outputs, *graph.captured, *idle}
        names: dict[str, list[str]] = {}  # by value: those that it is read as
        for value in self.stands:
            names.setdefault(self.resolved(value), []).append(value)

        def is_read(value: str) -> bool:
            return value in roots or any(
                user.index in first_live and user.index not in gone and place in self.inputs.get(user.index, (place,))
                for user, place in graph.consumers.get(value, ())
            )

        def visit(number: int) -> Iterable[int]:  # numbers are negative here: the last node comes first
            node = graph.nodes[-number]
            made = [name for name in node.outputs if name and name not in self.stands]
            if any(is_read(name) for value in made for name in (value, *names.get(value, ()))):
                return ()
            gone.update({node.index} & first_live)
            return makers(node.inputs)

        def makers(values: Iterable[str]) -> list[int]:
            found = [graph.producer.get(self.resolved(name)) for name in values if name]
            return [-node.index for node in found if node is not None]

        lost = [name for number in self.inputs for name in graph.nodes[number].inputs]
        changed = [graph.producer[name] for name in (*self.stands, *self.owner.idle)]
        _in_order([*(-node.index for node in changed), *makers(lost)], visit)
        return gone

    def _visit(self, node: Node) -> None:
        made = [name for name in node.outputs if name]
        if any(name in self.graph.weights for name in made):
            return
        empty = [name for name in made if name in self.empty]
        self.state.update((name, _EMPTY) for name in empty)
        if made and len(empty) == len(made):
            return
        found = [self._of(name) if name else 0 for name in node.inputs]
        rule = self.owner._when_empty(node)
        if empty:
            if rule is None or rule[0] != "split" or any(found):
                self._not_sure(node)
            else:
                self.outputs[node.index] = tuple(i for i, name in enumerate(node.outputs) if name not in empty)
        elif any(found):
            if rule is None or not self._given(node, rule, found):
                self._not_sure(node)
        elif any(name in self.stands for name in node.inputs[:1]):
            self._repeated(node)

    def _given(self, node: Node, rule: tuple[str, Sequence[Sequence[int]]], found: list[int]) -> bool:
        """Note what a node gives where some operands are gone; return whether that is sure."""
        kind, zeroed = rule
        graph = self.graph
        is_constant = [name in graph.weights for name in node.inputs]
        gone = [i for i, state in enumerate(found) if state]
        if kind == "product":
            factors = 2 if zeroed else len(node.inputs)
            return any(i < factors for i in gone) and self._zero(node, zeroed)
        if kind in ("keep", "split"):
            return gone == [0] and found[0] == _ZERO and self._zero(node, zeroed)
        if any(found[i] == _EMPTY for i in gone) and kind != "join":
            return False
        if kind == "scale":
            return self._zero(node, ())
        if kind == "quotient":
            return gone == [0] and self._zero(node, ())
        left = [i for i, name in enumerate(node.inputs) if name and not found[i]]
        if kind == "join":
            if all(found):
                return all(state == _ZERO for state in found) and self._zero(node, ())
            if any(state == _ZERO for state in found):
                return False
            self.inputs[node.index] = tuple(left)
            return True
        if kind == "difference" and 0 in gone and 1 not in gone and not is_constant[1]:
            return False
        if all(is_constant[i] for i in left):
            return self._zero(node, [[i] for i in left])
        self.dropped[node.index] = [node.inputs[i] for i in gone]
        self.inputs[node.index] = tuple(left)
        if len(left) > 1:
            return True
        one, other = graph.shape(self.resolved(node.inputs[left[0]])), graph.shape(node.outputs[0])
        if one is None or one != other:
            return False
        self._stand(node, self.resolved(node.inputs[left[0]]))
        return True

    def _repeated(self, node: Node) -> None:
        """Let a node whose operand has another's place now go where it does again what was done before."""
        operand = self.resolved(node.inputs[0])
        if self.owner._repeats(node, self.graph.producer.get(operand)):
            self.inputs[node.index] = (0,)
            self._stand(node, operand)

    def _stand(self, node: Node, operand: str) -> None:
        value = node.outputs[0]
        if value in self.graph.outputs or value in self.graph.captured:
            self.identity.add(node.index)
        else:
            self.stands[value] = operand

    def _zero(self, node: Node, zeroed: Sequence[Sequence[int]]) -> bool:
        """Note that a node gives zeros, where constants at some positions are neutral."""
        choices = []
        for places in zeroed:
            names = [node.inputs[i] for i in places if i < len(node.inputs) and node.inputs[i]]
            if len(names) < len(places):
                continue  # an operand that is left out adds nothing
            usable = [name for name in names if name in self.graph.tensors and self.graph.is_float(name)]
            if not usable:
                return False
            choices.append(usable)
        for name in node.outputs:
            if name:
                self.state[name] = _ZERO
                self.needs[name] = choices
        return True

    def _not_sure(self, node: Node) -> None:
        self.unsure[node.index] = f"{node.label}: what it gives without its operands is not sure"

    # -- what follows

    def _is_dead(self, value: str) -> bool:
        value = self.resolved(value)
        node = self.graph.producer.get(value)
        return bool(self.state.get(value)) or (node is not None and node.index in self.gone)

    def followers(self) -> set[int]:
        """Return the groups that go too: nothing that lives has their units, or nothing that lives makes them."""
        found = set()
        ended = [*self.state, *self.stands, *(name for i in self.gone for name in self.graph.nodes[i].outputs)]
        on = set[int]().union(*(self.owner._on.get(name, ()) for name in ended))
        for number in on.intersection(range(len(self.owner.channels.groups))) - self.groups:
            values, sources = self.owner._values[number], self.owner._sources[number]
            is_unread = bool(values) and all(map(self._is_dead, values))
            is_unmade = bool(sources) and all(self._is_dead(name) for node in sources for name in node.outputs if name)
            if is_unread or is_unmade:
                found.add(number)
        return found

    def closed(self) -> Closed:
        """Return the closed form."""
        graph, owner, gone = self.graph, self.owner, self.gone
        tensors = {
            name
            for i in gone
            for name in graph.nodes[i].inputs
            if name in graph.tensors and all(user.index in gone for user, _ in graph.consumers[name])
        } - set(graph.captured)
        needed: set[str] = set()
        why = self._why_not(gone) or self._not_neutral(tensors, needed)
        neutral = {name for name in tensors if name in owner._on or name in needed}
        standing = {value: self.resolved(value) for value in self.stands}
        kept_inputs = {i: places for i, places in self.inputs.items() if i not in gone and i not in self.identity}
        standing.update((graph.nodes[i].outputs[0], self.stands_behind(graph.nodes[i])) for i in self.identity - gone)
        return Closed(
            frozenset(self.groups),
            frozenset(gone),
            standing,
            frozenset(self.identity - gone),
            kept_inputs,
            {i: places for i, places in self.outputs.items() if i not in gone},
            frozenset(tensors),
            frozenset(neutral),
            why,
        )

    def _why_not(self, gone: set[int]) -> str | None:
        graph, owner = self.graph, self.owner
        if self.lost:
            return f"{self.lost[0]} would no longer depend on the inputs"
        for index, why in sorted(self.unsure.items()):
            if index in owner.first_live and index not in self.gone:
                return why
        depends = owner.dependence(owner.depends, self.visited, self._read, self.state, self.resolved)
        for value in graph.outputs:
            if depends.get(self.resolved(value), 0) != owner.depends.get(value, 0):
                return f"{value} would no longer depend on all inputs"
        groups = owner.channels.groups
        for number in sorted(self.groups):
            if groups[number].name in owner.channels.staying:
                return f"group {groups[number].name}: {owner.channels.staying[groups[number].name]}"
        n_groups = len(groups)
        for number, group in enumerate(owner.channels.frozen, n_groups):
            values = owner._values[number]
            if _is_excluded(group) and values and all(map(self._is_dead, values)):
                return f"group {group.name}: {group.why_frozen}"
        return None

    def _not_neutral(self, tensors: set[str], needed: set[str]) -> str | None:
        """Return why a branch that is no longer added would not be zero, or None; what must be neutral goes to `needed`."""
        pending, seen = [name for number in sorted(self.dropped) for name in self.dropped[number]], set[str]()
        while pending:
            value = pending.pop()
            if value in seen:
                continue
            seen.add(value)
            for choice in self.needs.get(value, ()):
                free = [name for name in choice if name in tensors and self.graph.tensors[name].dims]
                if free:
                    needed.update(free)
                elif not any(not self.graph.array(name).any() for name in choice):
                    return f"{choice[0]} is used elsewhere too, so what ends in {value} cannot be nothing"
            node = self.graph.producer.get(value)
            pending += [name for name in (node.inputs if node else ()) if self.state.get(name) == _ZERO]
        return None


def _is_excluded(group: Group) -> bool:
    return (group.why_frozen or "").startswith("left whole by")


def _users(graph: Graph, values: Iterable[str]) -> list[int]:
    """Return the numbers of the nodes that read values."""
    return [user.index for value in values for user, _ in graph.consumers.get(value, ())]


def _in_order(start: Iterable[int], visit: Callable[[int], Iterable[int]]) -> set[int]:
    """Visit numbers in ascending order, each once, and those higher ones that a visit gives; return all."""
    seen = set(start)
    pending = [*seen]
    heapify(pending)
    while pending:
        for number in visit(heappop(pending)):
            if number not in seen:
                seen.add(number)
                heappush(pending, number)
    return seen


def _reached(graph: Graph, idle: Sequence[str]) -> set[int]:
    """Return the numbers of the nodes that graph outputs, subgraphs and idle values depend on."""
    found: set[int] = set()
    pending = [*graph.outputs, *graph.captured, *idle]
    while pending:
        node = graph.producer.get(pending.pop())
        if node is not None and node.index not in found:
            found.add(node.index)
            pending.extend(node.inputs)
    return found
