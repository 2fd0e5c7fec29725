(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const said = $("said");
  document.querySelectorAll(".cols u").forEach((col) => {
    const say = () => { said.textContent = col.title; };
    ["mouseenter", "focus", "click"].forEach((name) => col.addEventListener(name, say));
  });
  document.querySelectorAll(".copy").forEach((place) => {
    const button = document.createElement("button");
    button.className = "small";
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", () => {
      const pre = place.querySelector("pre");
      const range = document.createRange();
      range.selectNodeContents(pre);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      const copied = document.execCommand("copy");  // needs no permission, and works in files opened from a disk
      if (copied) getSelection().removeAllRanges();
      button.textContent = copied ? "Copied" : "Press Ctrl-C";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    place.append(button);
  });

  const source = $("network");
  if (!source) return;
  const net = JSON.parse(source.textContent);
  const boxes = [...document.querySelectorAll("#level2 .b")];
  const [W, H] = net.size;
  const svg = (tag, attributes, parent, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const fit = (text, n) => (text.length <= n ? text : "\u2026" + text.slice(text.length - n + 1));
  const where = (name, n) => {  // "/layer1/layer1.2/bn1/BatchNormalization" -> "layer1.2/bn1"
    const [kind, path] = name.split(" ");
    const parts = (path || kind).split("/").filter(Boolean);
    if (parts.length > 1 && parts[parts.length - 1].startsWith(kind)) parts.pop();
    return fit(parts.slice(-2).join("/"), n);
  };
  const count = (n) => n.toLocaleString("en-US");

  function level1(box) {
    const template = net.templates[box.template];
    const root = svg("svg", { style: `width:100%;max-width:${template.w}px;min-width:${0.72 * template.w}px`, viewBox: `0 -2 ${template.w} ${template.h + 4}` });
    for (const d of template.paths) svg("path", { class: "line", d, "marker-end": "url(#tip)" }, root);
    template.at.forEach(([x, y], i) => {
      const op = box.ops[i];
      const place = svg("g", { class: op ? "b" : "b outer", transform: `translate(${x} ${y})` }, root);
      svg("rect", { width: W, height: op ? H : H - 14, y: op ? 0 : 14, rx: 6 }, place);
      if (!op) {
        svg("text", { x: W / 2, y: 34, "text-anchor": "middle", class: "sub" }, place, "from before");
        return;
      }
      const [type, name, before, after, full, kept] = op;
      svg("title", {}, place, `${name}: ${before} \u2192 ${after}` + (full ? `, ${count(full)} \u2192 ${count(kept)} MACs` : ""));
      svg("text", { x: 10, y: 16 }, place, type);
      svg("text", { x: W - 10, y: 16, "text-anchor": "end", class: "sub" }, place, where(name, 21));
      svg("text", { x: 10, y: 31, class: "sub" }, place, before === after ? before : `${before} \u2192 ${after}`);
      if (full) {
        svg("rect", { class: "all", x: 10, y: 37, width: W - 20, height: 4, rx: 2 }, place);
        svg("rect", { class: "part", x: 10, y: 37, width: (W - 20) * kept / full, height: 4, rx: 2 }, place);
      }
    });
    return root;
  }

  function show(index, center) {
    const box = net.boxes[index];
    boxes.forEach((b, i) => b.classList.toggle("on", i === index));
    const full = box.ops.reduce((sum, op) => sum + (op[4] || 0), 0);
    const kept = box.ops.reduce((sum, op) => sum + (op[5] || 0), 0);
    const cost = full ? `, ${count(full)} \u2192 ${count(kept)} MACs` : "";
    $("about").textContent = `${box.title}, ${box.ops.length} op${box.ops.length > 1 ? "s" : ""}${cost}`;
    $("level1").replaceChildren(level1(box));
    if (center) {
      const canvas = $("level2");
      const place = boxes[index].getBoundingClientRect();
      canvas.scrollTop += place.top - canvas.getBoundingClientRect().top - canvas.clientHeight / 2;
    }
  }

  boxes.forEach((b, i) => {
    b.addEventListener("click", () => show(i));
    b.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (event.key === "Enter" || event.key === " ") show(i);
      else if (step && boxes[i + step]) { boxes[i + step].focus({ preventScroll: true }); show(i + step, true); }
      else return;
      event.preventDefault();
    });
  });

  let found = [];
  let at = -1;
  const find = $("find");
  const search = () => {
    const words = find.value.trim().toLowerCase();
    found = [];
    boxes.forEach((b, i) => {
      const hit = !words || (b.textContent + " " + net.boxes[i].ops.map((op) => op[1]).join(" ")).toLowerCase().includes(words);
      b.classList.toggle("dim", !hit);
      if (words && hit) found.push(i);
    });
    at = -1;
    $("found").textContent = words ? `${found.length} of ${boxes.length} boxes; Enter goes to the next` : "";
  };
  find.addEventListener("input", search);
  find.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !found.length) return;
    at = (at + 1) % found.length;
    show(found[at], true);
  });
  document.querySelectorAll(".chip").forEach((chip) => chip.addEventListener("click", () => {
    const is = (i) => net.boxes[i].title === chip.dataset.motif;
    const off = chip.getAttribute("aria-pressed") === "true";
    document.querySelectorAll(".chip").forEach((c) => c.setAttribute("aria-pressed", "false"));
    chip.setAttribute("aria-pressed", String(!off));
    boxes.forEach((b, i) => b.classList.toggle("dim", !off && !is(i)));
    if (!off) show(boxes.findIndex((_, i) => is(i)), true);
  }));
  const heaviest = net.boxes.reduce((best, box, i) => {
    const saved = box.ops.reduce((sum, op) => sum + ((op[4] || 0) - (op[5] || 0)), 0);
    return saved > best[0] ? [saved, i] : best;
  }, [-1, 0])[1];
  show(heaviest);
})();
