"""Feed the program mutated models, plans, cards, journals and tables, and count what ends in no right answer or error.

    python -m tools.fuzz --inputs 10000 --log fuzz.jsonl        # again with the same log: goes on where it stopped
    python -m tools.fuzz --inputs 10000 --log fuzz.jsonl --only 4711 --keep folder

Input number i depends on the seed and i alone. A fork server holds the imported program; every input gets a process of its
own, in an empty folder, which may take 20 s of processor time and 2 GB. What counts as a failure:

- internal: exit code 1 or a signal, or an error that is not one line that begins "agmc-onnx: error:", after lines of progress;
- hang: over 20 s of processor time, or 200 s of the wall clock, since other processes may be in the way;
- memory: over 2 GB resident, or out of memory at 4 GB of data;
- partial: some files of a result but not all, or any after an error, or hidden ones.

`nets` are mutated by `models`, everything else by `texts`; `inputs` says what verbs an input goes through, `server` runs them
in a process of their own, `__main__` judges what came of it.
"""
