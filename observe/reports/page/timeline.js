// SPDX-License-Identifier: Apache-2.0
// The timeline of one operation: nested phases, the processes below them, system calls and file events as marks.
// `new Timeline(element, data)` fills an element with what observe/reports/timeline_data.py makes of a run.
// Drawing is bounded by pixels, not by events: what lies out of view is skipped, what shares a pixel is drawn once.
// Text from a recording goes into the page as text nodes and canvas text only.
"use strict";

// Words and numbers ------------------------------------------------------------------------------------------

const UNITS = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]];

function formatDuration(ns) {
  if (ns >= 6e10) return `${Math.floor(ns / 6e10)} min ${Math.round((ns % 6e10) / 1e9)} s`;
  const [size, unit] = UNITS.find(([size]) => ns >= size) || UNITS[3];
  return `${size === 1 ? Math.round(ns) : (ns / size).toFixed(1)} ${unit}`;
}

function formatCount(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en-US")} ${count === 1 ? one : many}`;
}

// The least of 1, 2, 5, 10, … that leaves room for a label at each step.
function tickStep(span, width) {
  const raw = Math.max(span / Math.max(width / 95, 1), 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
}

function formatTick(time, step) {
  if (time === 0) return "0";
  const [size, unit] = UNITS.find(([size]) => step >= size) || UNITS[3];
  return `${Math.round(time / size).toLocaleString("en-US")} ${unit}`;
}

function create(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// What of the time is visible --------------------------------------------------------------------------------

// Timelines that share a view are aligned on one axis.
class TimelineView {
  constructor(extent) {
    this.extent = extent;
    this.start = 0;
    this.end = extent;
    this.listeners = [];
  }

  get span() { return this.end - this.start; }
  get whole() { return this.start <= 0 && this.end >= this.extent; }

  set(start, end) {
    const span = Math.min(Math.max(end - start, Math.min(1000, this.extent)), this.extent);
    this.start = Math.min(Math.max((start + end - span) / 2, 0), this.extent - span);
    this.end = this.start + span;
    for (const listener of this.listeners) listener();
  }

  // Keeps the moment `at` where it is.
  zoom(factor, at = (this.start + this.end) / 2) {
    const span = Math.min(Math.max(this.span * factor, Math.min(1000, this.extent)), this.extent);
    const share = (at - this.start) / this.span;
    this.set(at - share * span, at + (1 - share) * span);
  }

  pan(share) { this.set(this.start + share * this.span, this.end + share * this.span); }

  reset() { this.set(0, this.extent); }

  show(start, end) {
    if (start < this.start || end > this.end) this.set(start - this.span / 2, start + this.span / 2);
  }
}

const SHAPES = ["call", "process", "file"];

// The data, ready to be looked up ----------------------------------------------------------------------------

class TimelineModel {
  constructor(data) {
    Object.assign(this, data);
    this.time = Float64Array.from(data.events.time_ns);
    this.length = Float64Array.from(data.events.duration_ns);
    this.shapes = data.events.kind.map((kind) => data.kinds.shape[kind]);
    this.rowCount = Math.max(0, ...data.phases.row.map((row) => row + 1));
    // Shape and colour in one number: marks of the same look are drawn as one where they touch.
    this.looks = Uint8Array.from(this.shapes, (shape, event) =>
      SHAPES.indexOf(shape) * 8 + (data.phases.hue[data.events.phase[event]] ?? -1) + 1);
    this.lanes = data.processes.pid.map((_, process) => ({ process, events: [], longest: 0, files: false }));
    data.events.process.forEach((process, event) => {
      const lane = this.lanes[process];
      lane.events.push(event);
      lane.longest = Math.max(lane.longest, this.length[event]);
      lane.files ||= this.shapes[event] === "file";
    });
    // What the arrow keys walk through: a row a level of phases, then one a process.
    this.walk = Array.from({ length: this.rowCount }, () => []);
    data.phases.row.forEach((row, index) => this.walk[row].push({ type: "phase", index }));
    for (const row of this.walk) row.sort((one, other) => this.bounds(one)[0] - this.bounds(other)[0]);
    for (const { process, events } of this.lanes) {
      this.walk.push([{ type: "process", index: process }, ...events.map((index) => ({ type: "event", index }))]);
    }
  }

  bounds({ type, index }) {
    if (type === "event") return [this.time[index], this.time[index] + this.length[index]];
    if (type === "process") return [this.processes.start_ns[index], this.processes.end_ns[index]];
    const pieces = this.phases.pieces[index];
    const last = pieces[pieces.length - 1];
    return [pieces[0][0], last[0] + last[1]];
  }

  // Number of the first event of a lane that begins at `time` or later.
  lowerBound(lane, time) {
    let low = 0;
    let high = lane.events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.time[lane.events[middle]] < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // Of a log without times only the order is known.
  at(time) { return !this.timed ? "" : time === 0 ? "0" : formatDuration(time); }

  lasting(duration) { return this.timed ? formatDuration(duration) : ""; }

  // Heading, and facts as [name, value], of something that was pointed at.
  describe({ type, index }) {
    if (type === "phase") return this.describePhase(index);
    return type === "process" ? this.describeProcess(index) : this.describeEvent(index);
  }

  describePhase(index) {
    const of = (name) => this.phases[name][index];
    const evidence = of("at_floor") ? "at floor: as short as the probes that bound it" : of("evidence");
    const share = (100 * of("duration_ns")) / (this.duration_ns || 1);
    return [of("id"), [
      ["", of("title")],
      ["begins at", this.at(of("start_ns"))],
      ["lasts", this.timed ? `${this.lasting(of("duration_ns"))} (${share.toFixed(1)}%)` : ""],
      ["own time", this.lasting(of("self_ns"))],
      ...(of("pieces").length > 1 ? [["in", formatCount(of("pieces").length, "piece")]] : []),
      ["in its own time", `${formatCount(of("syscalls"), "system call")}, ${formatCount(of("file_events"), "file event")}`],
      ["evidence", evidence],
      ["documented step", of("step")],
      ...of("functions").map((name) => ["function", name]),
    ]];
  }

  describeProcess(index) {
    const of = (name) => this.processes[name][index];
    return [of("name"), [
      ...(of("pid") ? [["process", String(of("pid"))]] : []),
      ["begins at", of("depth") ? this.at(of("start_ns")) : "before the operation"],
      ["seen for", this.lasting(of("end_ns") - of("start_ns"))],
      ["ends", of("ended") ? "by its exit" : "not inside the operation"],
      ["events", this.lanes[index].events.length.toLocaleString("en-US")],
      ["arguments", of("command")],
    ]];
  }

  describeEvent(index) {
    const of = (name) => this.events[name][index];
    const text = (name) => this.strings[of(name)];
    const late = this.timed && this.time[index] > this.duration_ns ? " (told after the answer)" : "";
    const result = of("result");
    const error = this.errors[result] ? ` ${this.errors[result]}` : "";
    const shape = this.shapes[index];
    return [this.kinds.label[of("kind")], [
      ["path", text("path")],
      ["and", text("other")],
      ["with", text("detail")],
      ["begins at", this.at(this.time[index]) + late],
      ...(this.length[index] ? [["lasts", this.lasting(this.length[index])]] : []),
      ...(shape === "call" ? [["returns", `${result}${error}`]] : []),
      ...(of("flags") ? [["flags", `0x${of("flags").toString(16)}`]] : []),
      ["process", this.processName(of("process"))],
      ["phase", this.phases.id[of("phase")] ?? ""],
    ]];
  }

  processName(process) {
    const pid = this.processes.pid[process];
    return this.processes.name[process] + (pid ? ` (${pid})` : "");
  }

  // Phases, processes and events, in this order, of whose words one contains the text.
  search(text) {
    const wanted = text.toLowerCase();
    const has = (word) => word.toLowerCase().includes(wanted);
    const pick = (type, count, test) =>
      Array.from({ length: count }, (_, index) => index).filter(test).map((index) => ({ type, index }));
    const strings = this.strings.map(has);
    const labels = this.kinds.label.map(has);
    const { kind, path, other, detail } = this.events;
    return [
      ...pick("phase", this.phases.id.length, (i) => has(this.phases.id[i]) || has(this.phases.title[i])),
      ...pick("process", this.lanes.length, (i) => has(this.processName(i)) || has(this.processes.command[i])),
      ...pick("event", this.time.length, (i) => labels[kind[i]] || strings[path[i]] || strings[other[i]] || strings[detail[i]]),
    ];
  }
}

// Where things stand, from the top in pixels -----------------------------------------------------------------

const AXIS = 30;
const ROW = 24;
const HEAD = 26;
const LABEL = 15;
const BAR = 13;
const FILES = 8;
const BETWEEN = 7;

function placeRows(model) {
  let y = AXIS + HEAD;
  const rows = Array.from({ length: model.rowCount }, (_, row) => y + row * ROW);
  y += model.rowCount * ROW + 6;
  const heading = y;
  if (model.lanes.length) y += HEAD;
  const lanes = model.lanes.map((lane) => {
    const top = y;
    const height = LABEL + BAR + (lane.files ? FILES : 0);
    y += height + BETWEEN;
    return { top, bar: top + LABEL, files: top + LABEL + BAR + 1, bottom: top + height };
  });
  return { rows, lanes, heading, height: y + 2 };
}

// How much of the paper is in the colour of a phase, by how deep it lies.
const SHADES = [0, 0.14, 0.28, 0.42];

// Colours as the style sheet has them, in the scheme that is in force.
function readColours(element) {
  const probe = element.appendChild(create("span", { hidden: "" }));
  const read = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const hues = [0, 1, 2, 3, 4, 5].map((hue) => read(`--phase-${hue}`));
  const shades = {};
  const colours = {
    operation: read("--operation"), ink: read("--ink"), muted: read("--muted"), line: read("--line"),
    surface: read("--surface"), process: read("--process"), accent: read("--accent"),
  };
  probe.remove();
  const channels = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map(Number);
  const paper = channels(colours.surface);
  // Deeper phases are paler, so that neighbours of one colour stay apart.
  colours.of = (hue, depth = 1) => {
    const key = hue * 10 + depth;
    shades[key] ??= channels(hue < 0 ? colours.operation : hues[hue])
      .map((part, i) => Math.round(part + (paper[i] - part) * SHADES[Math.min(Math.max(depth - 1, 0), SHADES.length - 1)]));
    return `rgb(${shades[key].join(", ")})`;
  };
  colours.on = (hue, depth) => {
    const [red, green, blue] = channels(colours.of(hue, depth));
    return 0.299 * red + 0.587 * green + 0.114 * blue > 135 ? "#111" : "#fff";
  };
  return colours;
}

// Drawing ----------------------------------------------------------------------------------------------------

class TimelinePainter {
  constructor(context, model, places, view, width, colours) {
    Object.assign(this, { context, model, places, view, width, colours });
    this.scale = width / view.span;
    this.primitives = 0;
    this.visited = 0;
    this.hatches = new Map();
  }

  x(time) { return (time - this.view.start) * this.scale; }

  // `faded`: everything, pale, since what a search found is drawn over it.
  draw(faded, matches) {
    this.axis();
    this.heading("Phases", AXIS + HEAD - 9);
    if (this.places.lanes.length) this.heading("Processes", this.places.heading + HEAD - 9);
    const { phases } = this.model;
    const found = new Set(matches.filter(({ type }) => type === "phase").map(({ index }) => index));
    phases.id.forEach((_, index) => this.phase(index, faded && !found.has(index)));
    const foundEvents = new Uint8Array(this.model.time.length);
    for (const { type, index } of matches) if (type === "event") foundEvents[index] = 1;
    this.model.lanes.forEach((lane, index) => {
      this.process(lane, this.places.lanes[index]);
      this.marks(lane, this.places.lanes[index], faded ? 0.18 : 1, null);
      if (faded) this.marks(lane, this.places.lanes[index], 1, foundEvents);
    });
  }

  axis() {
    const { context, colours, view, width, places } = this;
    const step = tickStep(view.span, width);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    const first = this.model.timed ? Math.ceil(view.start / step) * step : Infinity;
    for (let time = first; time <= view.end; time += step) {
      const x = Math.round(this.x(time)) + 0.5;
      context.fillStyle = colours.line;
      this.box(x - 0.5, AXIS - 6, 1, places.height - AXIS + 6);
      const label = formatTick(time, step);
      const room = context.measureText(label).width;
      context.fillStyle = colours.muted;
      context.fillText(label, Math.min(Math.max(x - room / 2, 2), width - room - 2), AXIS - 15);
    }
    // After the answer only late tellers speak.
    const end = this.x(this.model.duration_ns);
    if (end < width - 1) {
      context.fillStyle = colours.muted;
      this.box(end, AXIS - 6, 1, places.height);
    }
  }

  heading(text, y) {
    const { context, colours } = this;
    context.font = "600 11px system-ui, sans-serif";
    context.fillStyle = colours.muted;
    context.fillText(text, 2, y);
  }

  box(x, y, width, height) {
    this.context.fillRect(x, y, width, height);
    this.primitives += 1;
  }

  phase(index, faded) {
    const { context, model, colours, width } = this;
    const { phases } = model;
    const y = this.places.rows[phases.row[index]];
    const hue = phases.hue[index];
    const depth = phases.id[index].split(".").length - 1;
    const [start, end] = model.bounds({ type: "phase", index });
    if (end < this.view.start || start > this.view.end) return;
    context.globalAlpha = faded ? 0.18 : 1;
    if (phases.pieces[index].length > 1) {
      context.fillStyle = colours.of(hue, depth);
      this.box(Math.max(this.x(start), 0), y + ROW / 2 - 1, Math.min(this.x(end), width) - Math.max(this.x(start), 0), 1);
    }
    let widest = [0, 0];
    for (const [from, length] of phases.pieces[index]) {
      const left = Math.max(this.x(from), -2);
      const right = Math.min(Math.max(this.x(from + length), this.x(from) + 1.5), width + 2);
      if (right < 0 || left > width) continue;
      this.piece(left, y + 1, right - left, ROW - 3, colours.of(hue, depth), phases.evidence[index], phases.at_floor[index]);
      if (right - left > widest[1] - widest[0]) widest = [left, right];
    }
    const solid = phases.evidence[index] === "function" && !phases.at_floor[index];
    const name = phases.id[index].split(".").pop();
    const time = this.model.timed ? `  ${formatDuration(phases.duration_ns[index])}` : "";
    context.globalAlpha = 1;
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = faded ? colours.muted : solid ? colours.on(hue, depth) : colours.ink;
    this.label(name, time, Math.max(widest[0], 0), Math.min(widest[1], width), y + ROW / 2);
  }

  // Functions bound it: solid; kernel evidence: hatched; as short as its probes: hollow.
  piece(x, y, width, height, colour, evidence, atFloor) {
    const { context, colours } = this;
    if (evidence === "function" && !atFloor) {
      context.fillStyle = colour;
      this.box(x, y, Math.max(width - (width > 4 ? 1 : 0), 1), height);
      return;
    }
    context.fillStyle = colours.surface;
    this.box(x, y, width, height);
    if (!atFloor) {
      context.fillStyle = this.hatch(colour);
      this.box(x, y, width, height);
    }
    context.strokeStyle = colour;
    context.strokeRect(x + 0.5, y + 0.5, Math.max(width - 1.5, 0.5), height - 1);
  }

  hatch(colour) {
    if (!this.hatches.has(colour)) {
      const tile = create("canvas", { width: 7, height: 7 });
      const pen = tile.getContext("2d");
      pen.fillStyle = pen.strokeStyle = colour;
      pen.globalAlpha = 0.3;
      pen.fillRect(0, 0, 7, 7);
      pen.globalAlpha = 0.35;
      pen.beginPath();
      for (const shift of [-7, 0, 7]) {
        pen.moveTo(shift, 7);
        pen.lineTo(shift + 7, 0);
      }
      pen.stroke();
      this.hatches.set(colour, this.context.createPattern(tile, "repeat"));
    }
    return this.hatches.get(colour);
  }

  // The text, shortened to its place; what follows it only if there is room for both.
  label(text, after, left, right, y) {
    const { context } = this;
    const room = right - left - 10;
    if (room < 14) return;
    const whole = context.measureText(text).width;
    if (whole <= room) {
      const both = text + after;
      context.fillText(context.measureText(both).width <= room ? both : text, left + 5, y);
      return;
    }
    const letters = Math.floor((text.length * room) / whole) - 1;
    if (letters > 1) context.fillText(`${text.slice(0, letters)}…`, left + 5, y);
  }

  process(lane, place) {
    const { context, colours, width } = this;
    const of = (name) => this.model.processes[name][lane.process];
    const left = Math.max(this.x(of("start_ns")), 0);
    const right = Math.min(Math.max(this.x(of("end_ns")), this.x(of("start_ns")) + 1), width);
    context.fillStyle = colours.process;
    if (right > left) this.box(left, place.bar, right - left, BAR);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = colours.muted;
    const text = this.model.processName(lane.process);
    const room = context.measureText(text).width;
    context.globalAlpha = right > left ? 1 : 0.45;  // it lives before or after what is shown
    context.fillText(text, Math.max(Math.min(left, width - room - 4), 2), place.top + 7);
    context.globalAlpha = 1;
  }

  // Marks of one shape and colour that touch become one box. `only`: flags of the events to draw, or all.
  marks(lane, place, alpha, only) {
    const { context, colours, model, width } = this;
    context.globalAlpha = alpha;
    const open = [];
    const flush = ({ look, left, right, alone, event }) => {
      const hue = (look % 8) - 1;
      const shape = SHAPES[look >> 3];
      context.fillStyle = colours.of(hue);
      if (shape === "file") this.triangles(left, right, place.files);
      else if (shape === "process") this.box(left, place.bar - 2, Math.max(right - left, 2), BAR + 4);
      else {
        this.box(left, place.bar + 1, right - left, BAR - 2);
        if (!alone || right - left < 50 || alpha < 1) return;
        context.font = "10px system-ui, sans-serif";
        context.fillStyle = colours.on(hue, 1);
        const label = model.kinds.label[model.events.kind[event]];
        this.label(label, "", Math.max(left - 1, 0), Math.min(right, width), place.bar + BAR / 2);
      }
    };
    const { time, length, looks } = model;
    const { scale, view } = this;
    const first = model.lowerBound(lane, view.start - lane.longest);
    const last = model.lowerBound(lane, view.end);
    this.visited += Math.max(last - first, 0);
    for (let i = first; i < last; i += 1) {
      const event = lane.events[i];
      if (only && !only[event]) continue;
      const left = Math.max((time[event] - view.start) * scale, -4);
      const right = Math.min(Math.max((time[event] + length[event] - view.start) * scale, left + 1.5), width + 4);
      if (right < 0) continue;
      const look = looks[event];
      const mark = open[look];
      if (mark && left <= mark.right + (look >= 16 ? 4 : 0.5)) {
        if (right > mark.right) mark.right = right;
        mark.alone = false;
        continue;
      }
      if (mark) flush(mark);
      open[look] = { look, left, right, alone: true, event };
    }
    open.forEach(flush);
    context.globalAlpha = 1;
  }

  // One triangle, or, where many touch, one with a long base.
  triangles(left, right, y) {
    const { context } = this;
    context.beginPath();
    context.moveTo(left - 3, y + 7);
    context.lineTo(left, y);
    context.lineTo(right - 1.5, y);
    context.lineTo(right + 1.5, y + 7);
    context.fill();
    this.primitives += 1;
  }
}

// The element ------------------------------------------------------------------------------------------------

let timelines = 0;

const HELP = "Wheel with Ctrl, or + and −: zoom. Drag, or Shift with ← and →: pan. Arrows: walk. Enter or double click: "
  + "zoom to what is chosen. 0: everything. /: search. Esc: let go.";

class Timeline {
  constructor(root, data, { view, label } = {}) {
    this.root = root;
    this.model = new TimelineModel(data);
    this.places = placeRows(this.model);
    this.view = view || new TimelineView(data.extent_ns);
    this.chosen = null;
    this.hovered = null;
    this.query = "";
    this.matches = [];
    this.drawn = { frames: 0, primitives: 0, visited: 0 };
    root.timeline = this;
    root.classList.add("timeline");
    this.build(label || `Timeline of ${data.name}`);
    this.listen();
    this.restyle();
    this.resize();
  }

  build(label) {
    const button = (name, text, action) => {
      const element = create("button", { type: "button", "aria-label": name, title: name }, text);
      element.addEventListener("click", action);
      return element;
    };
    this.input = create("input", {
      type: "search", placeholder: "Search phases, processes, calls, paths", "aria-label": "Search the timeline",
      autocomplete: "off", spellcheck: "false",
    });
    this.count = create("output", { class: "timeline-count", "aria-live": "polite" });
    this.canvas = create("canvas", { "aria-hidden": "true" });
    this.overlay = create("canvas", { class: "timeline-overlay", "aria-hidden": "true" });
    this.tip = create("div", { class: "timeline-tip", "aria-hidden": "true", hidden: "" });
    this.details = create("div", { class: "timeline-details", role: "status", "aria-live": "polite" });
    timelines += 1;
    const help = create("p", { class: "timeline-help", id: `timeline-help-${timelines}` }, HELP);
    this.stage = create("div", {
      class: "timeline-stage", tabindex: "0", role: "application", "aria-roledescription": "timeline",
      "aria-label": label, "aria-describedby": help.id,
    }, this.canvas, this.overlay, this.tip);
    const key = (shape, text) => create("span", { class: `timeline-key timeline-key-${shape}` }, text);
    const evidence = new Set(this.model.phases.evidence.map((name, i) => (this.model.phases.at_floor[i] ? "floor" : name)));
    const shapes = new Set(this.model.kinds.shape);
    const legend = [
      ["function", "phase bounded by functions", evidence], ["kernel", "phase by kernel evidence", evidence],
      ["floor", "too short to be measured", evidence], ["call", "system call", shapes],
      ["process", "fork, exec, exit, API", shapes], ["file", "file event", shapes],
    ].filter(([name, , seen]) => seen.has(name)).map(([name, text]) => key(name, text));
    this.root.replaceChildren(
      create("div", { class: "timeline-tools" },
        create("div", { class: "timeline-search" }, this.input,
          button("Previous match", "‹", () => this.step(-1)), button("Next match", "›", () => this.step(1)), this.count),
        create("div", { class: "timeline-zoom" },
          button("Zoom out", "−", () => this.view.zoom(2)), button("Zoom in", "+", () => this.view.zoom(0.5)),
          button("Show everything", "Whole", () => this.view.reset()))),
      this.stage,
      create("div", { class: "timeline-legend" }, ...legend),
      this.details,
      help,
    );
  }

  listen() {
    this.view.listeners.push(() => this.draw());
    this.input.addEventListener("input", () => this.search(this.input.value));
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.step(event.shiftKey ? -1 : 1);
      if (event.key === "Escape") this.stage.focus();
    });
    this.stage.addEventListener("keydown", (event) => this.key(event));
    this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.stage.addEventListener("dblclick", (event) => this.choose(this.hit(event), true));
    this.stage.addEventListener("pointerleave", () => this.hover(null));
    this.fingers = new Map();
    this.stage.addEventListener("pointerdown", (event) => {
      this.fingers.set(event.pointerId, event);
      this.moved = false;
    });
    this.stage.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      this.stage.addEventListener(name, (event) => {
        if (name === "pointerup" && this.fingers.has(event.pointerId) && !this.moved) this.choose(this.hit(event));
        this.fingers.delete(event.pointerId);
      });
    }
    new ResizeObserver(() => this.resize()).observe(this.stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.restyle());
  }

  // Call it when the colours of the page have changed.
  restyle() {
    this.colours = readColours(this.root);
    this.draw();
  }

  resize() {
    this.width = Math.max(this.stage.clientWidth, 1);
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.overlay]) {
      canvas.width = Math.round(this.width * ratio);
      canvas.height = Math.round(this.places.height * ratio);
      canvas.style.height = `${this.places.height}px`;
    }
    this.ratio = ratio;
    this.draw();
  }

  // Soon: many changes make one picture.
  draw() {
    if (this.waiting || !this.width) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paint();
    });
  }

  paint() {
    const context = this.clean(this.canvas);
    const painter = new TimelinePainter(context, this.model, this.places, this.view, this.width, this.colours);
    painter.draw(this.query !== "", this.matches);
    this.drawn = { frames: this.drawn.frames + 1, primitives: painter.primitives, visited: painter.visited };
    this.paintOverlay();
  }

  clean(canvas) {
    const context = canvas.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.places.height);
    return context;
  }

  // What is pointed at and what is chosen, over the picture.
  paintOverlay() {
    const context = this.clean(this.overlay);
    const x = (time) => ((time - this.view.start) / this.view.span) * this.width;
    if (this.pointer !== undefined && this.hovered !== undefined) {
      context.fillStyle = this.colours.muted;
      context.fillRect(Math.round(this.pointer), AXIS - 6, 1, this.places.height);
    }
    for (const [item, weight] of [[this.hovered, 1], [this.chosen, 2]]) {
      if (!item) continue;
      const [start, end] = this.model.bounds(item);
      const [top, height] = this.span(item);
      const left = Math.max(x(start), -4);
      context.strokeStyle = weight === 2 ? this.colours.accent : this.colours.ink;
      context.lineWidth = weight;
      context.strokeRect(left - 1, top - 1, Math.max(Math.min(x(end), this.width + 4) - left, 2) + 2, height + 2);
    }
  }

  // Top and height of an item.
  span({ type, index }) {
    if (type === "phase") return [this.places.rows[this.model.phases.row[index]] + 1, ROW - 3];
    const lane = this.places.lanes[type === "process" ? index : this.model.events.process[index]];
    return type === "event" && this.model.shapes[index] === "file" ? [lane.files, FILES] : [lane.bar, BAR];
  }

  // Finding ---------------------------------------------------------------------------------------------------

  search(text) {
    this.query = text.trim();
    this.matches = this.query ? this.model.search(this.query) : [];
    this.current = -1;
    const found = (type) => this.matches.filter((match) => match.type === type).length;
    this.count.textContent = !this.query ? "" : !this.matches.length ? "no match"
      : [[found("phase"), "phase"], [found("process"), "process", "processes"], [found("event"), "event"]]
        .filter(([count]) => count).map((words) => formatCount(...words)).join(", ");
    this.draw();
  }

  step(by) {
    if (!this.matches.length) return;
    const count = this.matches.length;
    this.current = this.current < 0 ? (by > 0 ? 0 : count - 1) : (this.current + by + count) % count;
    this.choose(this.matches[this.current]);
    this.count.textContent = `${(this.current + 1).toLocaleString("en-US")} of ${count.toLocaleString("en-US")}`;
  }

  choose(item, zoomTo = false) {
    this.chosen = item;
    if (item) {
      const [start, end] = this.model.bounds(item);
      const margin = Math.max((end - start) * 0.05, 500);
      if (zoomTo) this.view.set(start - margin, end + margin);
      else this.view.show(start, Math.min(end, start + this.view.span));
    }
    this.tell(this.details, item);
    this.draw();
  }

  // Heading and facts as text nodes.
  tell(element, item) {
    element.replaceChildren();
    if (!item) return;
    const [heading, facts] = this.model.describe(item);
    const list = create("dl");
    for (const [name, value] of facts) {
      if (value) list.append(create("dt", {}, name), create("dd", {}, value));
    }
    element.append(create("strong", {}, heading), list);
  }

  // What stands at a pointer's place: the shortest of the events there before what they lie on.
  hit({ clientX, clientY }) {
    const { left, top } = this.stage.getBoundingClientRect();
    const [x, y] = [clientX - left, clientY - top];
    const perPixel = this.view.span / this.width;
    const time = this.view.start + x * perPixel;
    const covers = (item, slack) => {
      const [start, end] = this.model.bounds(item);
      return start - slack <= time && time <= end + slack;
    };
    const row = this.places.rows.findIndex((place) => place <= y && y < place + ROW);
    if (row >= 0) {
      const inPiece = ({ index }) => this.model.phases.pieces[index].some(([start, length]) =>
        start - 2 * perPixel <= time && time <= start + length + 2 * perPixel);
      const here = this.model.walk[row].filter((item) => covers(item, 2 * perPixel));
      const shortest = (one, other) => this.model.phases.duration_ns[one.index] - this.model.phases.duration_ns[other.index];
      return here.filter(inPiece).sort(shortest)[0] || here[0] || null;
    }
    const number = this.places.lanes.findIndex((place) => place.top <= y && y <= place.bottom);
    if (number < 0) return null;
    const lane = this.model.lanes[number];
    const slack = 4 * perPixel;
    const files = y >= this.places.lanes[number].files;
    let best = null;
    let least = Infinity;
    const last = this.model.lowerBound(lane, time + slack);
    for (let i = this.model.lowerBound(lane, time - slack - lane.longest); i < last; i += 1) {
      const index = lane.events[i];
      if ((this.model.shapes[index] === "file") !== files || !covers({ index, type: "event" }, slack)) continue;
      const start = this.model.time[index];
      const end = start + this.model.length[index];
      // How far away, then how long.
      const cost = Math.max(start - time, time - end, 0) * 1e6 + this.model.length[index];
      if (cost < least) [best, least] = [{ type: "event", index }, cost];
    }
    return best || { type: "process", index: number };
  }

  hover(event) {
    this.hovered = event ? this.hit(event) : null;
    const { left, top } = this.stage.getBoundingClientRect();
    this.pointer = event ? event.clientX - left : undefined;
    this.tell(this.tip, this.hovered);
    this.tip.hidden = !this.hovered;
    if (this.hovered) {
      const room = this.width - this.tip.offsetWidth - 4;
      const below = event.clientY - top + 18;
      const above = event.clientY - top - this.tip.offsetHeight - 12;
      const fits = event.clientY + this.tip.offsetHeight + 24 < window.innerHeight;
      this.tip.style.left = `${Math.max(Math.min(this.pointer + 14, room), 0)}px`;
      this.tip.style.top = `${fits ? below : above}px`;
    }
    this.paintOverlay();
  }

  // Hands -----------------------------------------------------------------------------------------------------

  move(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") this.hover(event);
      return;
    }
    const [other] = [...this.fingers.values()].filter(({ pointerId }) => pointerId !== event.pointerId);
    if (other) {
      const apart = (one) => Math.max(Math.abs(one.clientX - other.clientX), 10);
      this.view.zoom(apart(before) / apart(event));
    } else {
      if (!this.moved && Math.abs(event.clientX - before.clientX) < 4) return;
      this.stage.setPointerCapture(event.pointerId);
      this.view.pan((before.clientX - event.clientX) / this.width);
    }
    this.moved = true;
    this.fingers.set(event.pointerId, event);
    this.hover(null);
  }

  // Without Ctrl the page scrolls, unless the timeline was clicked into before.
  wheel(event) {
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (sideways || event.shiftKey) {
      event.preventDefault();
      this.view.pan((event.deltaX || event.deltaY) / this.width);
    } else if (event.ctrlKey || event.metaKey || document.activeElement === this.stage) {
      event.preventDefault();
      const at = this.view.start + ((event.clientX - this.stage.getBoundingClientRect().left) / this.width) * this.view.span;
      this.view.zoom(2 ** (Math.min(Math.max(event.deltaY, -120), 120) / 160), at);
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      "+": () => this.view.zoom(0.5), "=": () => this.view.zoom(0.5), "-": () => this.view.zoom(2),
      0: () => this.view.reset(), "/": () => this.input.focus(), Escape: () => this.choose(null),
      Enter: () => this.chosen && this.choose(this.chosen, true),
      ArrowLeft: () => (event.shiftKey ? this.view.pan(-0.2) : this.walk(0, -1)),
      ArrowRight: () => (event.shiftKey ? this.view.pan(0.2) : this.walk(0, 1)),
      ArrowUp: () => this.walk(-1, 0), ArrowDown: () => this.walk(1, 0),
      Home: () => this.view.pan(-this.view.start / this.view.span), End: () => this.view.pan(this.view.extent / this.view.span),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  // To the neighbour in the same row, or to what is nearest in the row above or below.
  walk(down, along) {
    const rows = this.model.walk;
    if (!rows.length) return;
    if (!this.chosen) {
      this.choose(rows[0][0] || null);
      return;
    }
    const same = ({ type, index }) => type === this.chosen.type && index === this.chosen.index;
    const row = rows.findIndex((items) => items.some(same));
    if (along) {
      const items = rows[row];
      this.choose(items[Math.min(Math.max(items.findIndex(same) + along, 0), items.length - 1)]);
      return;
    }
    const target = rows[Math.min(Math.max(row + down, 0), rows.length - 1)];
    if (target === rows[row]) return;
    if (target[0].type === "process") {
      this.choose(target[0]);
      return;
    }
    const [start] = this.model.bounds(this.chosen);
    const away = (item) => Math.abs(this.model.bounds(item)[0] - start);
    this.choose(target.reduce((best, item) => (away(item) < away(best) ? item : best)));
  }
}
