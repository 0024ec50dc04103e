// Lines over time and bars, as SVG of our own making.
//
// A chart of a daemon that has just begun shows the minute it knows, and widens to its whole window as time goes by.
//
// Promises: every chart can be read without seeing it (a label with its latest values), and by keyboard: left and right
// move the cursor through time, Escape lets go. Lines differ by their dash as well as by their colour.

const WINDOWS_S = [60, 120, 300, 600];
const NS = "http://www.w3.org/2000/svg";
const LEFT = 64;
const BOTTOM = 22;
const TOP = 8;
const RIGHT = 6;

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A bar of `share` (0 to 1). What it says stands beside it in words, so it is hidden from screen readers. */
export function bar(share) {
  const made = svg("svg", { class: "bar", viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  made.append(svg("rect", { width: 100 * Math.max(0, Math.min(1, share)), height: 1 }));
  return made;
}

export function setBar(made, share) {
  made.firstChild.setAttribute("width", 100 * Math.max(0, Math.min(1, share)));
}

/** The smallest of 1, 2, 5 times a power of the base's own steps that is not below `value`. */
function roundUp(value, base) {
  if (value <= 0) return 1;
  const unit = base ** Math.floor(Math.log(value) / Math.log(base));
  const steps = base === 1024 ? [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] : [1, 2, 5, 10];
  return unit * steps.find((step) => step * unit >= value);
}

/** How long ago something was, on an axis. */
function ago(agoS) {
  if (agoS === 0) return "now";
  return agoS < 60 ? `−${agoS} s` : `−${agoS / 60} min`;
}

/** Lines over the last ten minutes. `series`: [{name, field}], drawn in this order, two at most. */
export class Lines {
  #rows = [];
  #cursor = null;

  constructor(box, { label, series, format, yMax = null, base = 10 }) {
    Object.assign(this, { label, series, format, yMax, base });
    this.svg = svg("svg", { role: "img", tabindex: "0" });
    this.legend = document.createElement("div");
    this.legend.className = "legend";
    this.values = series.map(({ name }, index) => {
      const entry = document.createElement("span");
      const sample = svg("svg", { viewBox: "0 0 28 8", "aria-hidden": "true" });
      sample.append(svg("path", { class: index ? "second" : "first", d: "M1 4H27" }));
      const value = document.createElement("b");
      entry.append(sample, name, " ", value);
      this.legend.append(entry);
      return value;
    });
    this.when = document.createElement("span");
    this.when.className = "when";
    this.legend.append(this.when);
    box.replaceChildren(this.svg, this.legend);
    this.svg.addEventListener("pointermove", (event) => this.#point(event));
    this.svg.addEventListener("pointerleave", () => this.#move(null));
    this.svg.addEventListener("blur", () => this.#move(null));
    this.svg.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#draw()).observe(this.svg);
  }

  /** Rows of {unixS, [field]: value or null}, oldest first. */
  show(rows) {
    this.#rows = rows;
    this.#draw();
  }

  get #windowS() {
    const ageS = this.#rows.length ? this.#rows.at(-1).unixS - this.#rows[0].unixS : 0;
    return WINDOWS_S.find((windowS) => windowS >= ageS) ?? WINDOWS_S.at(-1);
  }

  #key(event) {
    const last = this.#rows.length - 1;
    const at = this.#cursor === null ? last : this.#rows.findIndex(({ unixS }) => unixS >= this.#cursor);
    const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last };
    if (event.key === "Escape") this.#move(null);
    if (!(event.key in steps) || last < 0) return;
    event.preventDefault();
    this.#move(this.#rows[Math.max(0, Math.min(last, steps[event.key]))].unixS);
  }

  #point(event) {
    const box = this.svg.getBoundingClientRect();
    const end = this.#rows.at(-1)?.unixS;
    if (end === undefined) return;
    const wanted = end - this.#windowS * (1 - (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT));
    const distance = (row) => Math.abs(row.unixS - wanted);
    this.#move(this.#rows.reduce((best, row) => (distance(row) < distance(best) ? row : best)).unixS);
  }

  #move(unixS) {
    this.#cursor = unixS;
    this.#draw();
  }

  #draw() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (width < LEFT + RIGHT + 10) return;
    const rows = this.#rows;
    const windowS = this.#windowS;
    const end = rows.at(-1)?.unixS ?? 0;
    const highest = Math.max(0, ...rows.flatMap((row) => this.series.map(({ field }) => row[field] ?? 0)));
    const top = this.yMax ?? roundUp(highest, this.base);
    const x = (unixS) => LEFT + (1 - (end - unixS) / windowS) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / top) * (height - TOP - BOTTOM);
    const drawn = [];
    for (const share of [0, 0.5, 1]) {
      const at = y(share * top);
      drawn.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
      drawn.push(svg("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" }, this.format(share * top)));
    }
    for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      const at = LEFT + share * (width - LEFT - RIGHT);
      drawn.push(svg("text", { x: at, y: height - 4, "text-anchor": anchor }, ago(windowS * (1 - share))));
    }
    this.series.forEach(({ field }, index) => {
      let path = "";
      let isOpen = false;
      for (const row of rows) {
        const isThere = row[field] !== null && row.unixS >= end - windowS;
        if (isThere) path += `${isOpen ? "L" : "M"}${x(row.unixS).toFixed(1)} ${y(row[field]).toFixed(1)}`;
        if (isThere && !isOpen) path += "h0.01"; // A value alone is a dot.
        isOpen = isThere;
      }
      drawn.push(svg("path", { class: index ? "second" : "first", d: path || "M0 0" }));
    });
    const chosen = this.#cursor === null ? rows.at(-1) : rows.find(({ unixS }) => unixS >= this.#cursor);
    if (this.#cursor !== null && chosen) {
      drawn.push(svg("line", { class: "cursor", x1: x(chosen.unixS), x2: x(chosen.unixS), y1: TOP, y2: height - BOTTOM }));
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...drawn);
    this.#tell(chosen, end);
  }

  #tell(row, end) {
    const told = this.series.map(({ field }) => (row ? this.format(row[field], true) : "–"));
    told.forEach((text, index) => {
      this.values[index].textContent = text;
    });
    const agoS = row ? Math.round(end - row.unixS) : 0;
    this.when.textContent = agoS ? `${agoS} s ago` : "now";
    const values = this.series.map(({ name }, index) => `${name} ${told[index]}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.label}, ${this.when.textContent}: ${values}`);
  }
}
