// The page: photos, a question, and the answer. What clients and models say is always text, never markup.

import { ask, catalogue, save, sentence } from "./api.js";
import { canvasSize, marks, paint } from "./draw.js";
import { NOTHING, decoded, fromRuns, heat, maskFile, region, stacked, units } from "./maps.js";

const $ = (id) => document.getElementById(id);
const MODES = { segment: "Segment", regions: "Regions", anomaly: "Anomaly", classify: "Classify", session: "Correct" };
const ABOUT = {
  segment: "Every pixel gets one of your words.",
  regions: "Finds regions and names them; or draw boxes and click points yourself. Without words, common things are named.",
  anomaly: "Where does it look damaged? By words alone, or compared with normal pictures.",
  classify: "Which of your words is the photo as a whole?",
  session: "Several photos, labelled by your words. Correct a region here and there: all photos learn from it.",
};
const TOOLS = {
  regions: { look: ["Find all", ""], box: ["Box", "Drag over the photo to draw boxes."], point: ["Point", "Click things on the photo."] },
  session: { look: ["Click", "Click a region that is wrong, then name it."], box: ["Box", "Drag a box around a thing, then name it."], paint: ["Paint", "Paint over a thing, in as many strokes as you like, then name it."] },
};
const tools = () => TOOLS[state.mode] ?? TOOLS.regions;
const DOUBLE = 500; // milliseconds in which a second click is no wish to stop
const MAPPED = ["segment", "session"]; // modes whose answer is a label map
const FILES = {
  json: "JSON", png: "Label map", overlay: "Picture", coco: "COCO", panoptic: "COCO panoptic", labelme: "LabelMe",
  labelstudio: "Label Studio", yolo: "YOLO", geojson: "GeoJSON", npz: "Arrays (NPZ)", html: "Web page",
  npy: "Raw map", zip: "As the command writes (ZIP)",
};
const EXAMPLES = [
  { file: "cat.jpg", title: "A photo", mode: "segment", labels: ["cat", "sofa"], model: /^(?!mini$)/ },
  { file: "wood.png", title: "A drawing", mode: "segment", labels: ["penguin", "football", "mushroom", "bicycle", "aeroplane", "sunflower", "pizza"], model: /^mini$/ },
  { file: "water.png", title: "Things, named", mode: "regions", labels: ["elephant", "fish", "sailboat", "pizza", "sunflower", "house"], model: /^mini$/, objects: true },
  { files: ["water.png", "wood.png"], title: "Correct, learn", mode: "session", labels: ["elephant", "fish", "sailboat", "penguin", "football"], model: /^mini$/ },
  { file: "tiles_damaged.png", title: "Damage", mode: "anomaly", item: "tile", normal: "tiles_sound.png", model: /^mini$/ },
];

const state = {
  offer: null, mode: "segment", photos: [], at: -1, labels: [], normal: [], tool: "look",
  only: null, hover: null, picked: null, draft: null, cursor: null, running: null, session: null,
};
const photo = () => state.photos[state.at];
const found = () => photo()?.answers[state.mode];
const percent = (share) => (share >= 0.0995 || share === 0 ? `${Math.round(100 * share)} %` : share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

function element(tag, { text, on = {}, ...rest } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(rest)) made.setAttribute(name, value);
  for (const [name, handler] of Object.entries(on)) made.addEventListener(name, handler);
  made.append(...children);
  return made;
}

function swatch(colour) {
  const made = element("span", { class: "swatch" });
  if (colour) made.style.background = `rgb(${colour.join(",")})`;
  return made;
}

// Messages ------------------------------------------------------------------------------------------------------------

function become(name, said = "") {
  document.body.dataset.state = name;
  $("status").textContent = said;
  $("error").hidden = true;
  $("run").textContent = name === "busy" ? "Stop" : { segment: "Segment", regions: state.tool === "look" ? "Find and name" : "Name", anomaly: "Inspect", classify: "Name", session: state.session ? "Label again" : "Begin" }[state.mode];
}

/** The state that fits what there is. */
const settle = () => state.running || become(photo() ? (found() ? "done" : "ready") : "empty");

function fail(error) {
  become("error");
  $("error").textContent = sentence(error.message);
  $("error").hidden = false;
  $("error").scrollIntoView({ block: "nearest" });
}

// Photos --------------------------------------------------------------------------------------------------------------

async function addPhotos(files) {
  const first = state.photos.length;
  let wrong = null;
  for (const file of files) {
    if (file.type && !file.type.startsWith("image/")) {
      wrong = new Error(`${file.name} is no picture; add a photo.`);
      continue;
    }
    if (file.size > state.offer.limits.bytes) {
      wrong = new Error(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; this server takes at most ${state.offer.limits.body} MB.`);
      continue;
    }
    const bitmap = await createImageBitmap(file).catch(() => null); // the server may read what the browser cannot
    state.photos.push({ file, bitmap, url: URL.createObjectURL(file), answers: {}, boxes: [], points: [], edits: {} });
  }
  if (state.photos.length > first) show(first);
  if (wrong) fail(wrong);
}

function show(index) {
  state.at = index;
  [state.only, state.hover, state.picked, state.cursor] = [null, null, null, null];
  $("tip").hidden = true;
  render();
  settle();
  if (state.mode === "session") freshen();
}

function remove(index) {
  URL.revokeObjectURL(state.photos[index].url);
  state.photos.splice(index, 1);
  show(Math.min(state.at, state.photos.length - 1));
}

function renderStrip() {
  const strip = $("strip");
  strip.hidden = !state.photos.length;
  strip.replaceChildren(
    ...ordered().map(([one, index, mark]) =>
      element("div", { class: `thumb${index === state.at ? " current" : ""}` }, ...(mark ? [element("span", { class: "mark", text: mark, title: "Here words and corrections disagree" })] : []),
        element("button", { type: "button", "aria-label": `Photo ${index + 1}: ${one.file.name}`, "aria-current": String(index === state.at), on: { click: () => show(index) } },
          one.bitmap ? element("img", { src: one.url, alt: "" }) : element("span", { class: "blank", text: "?" })),
        element("button", { type: "button", class: "close", "aria-label": `Remove ${one.file.name}`, text: "×", on: { click: () => remove(index) } }))),
    element("button", { type: "button", class: "add", "aria-label": "Add photos", text: "+", on: { click: () => $("files").click() } }),
  );
  $("run-all").hidden = state.photos.length < 2 || state.mode === "session";
}

/** Photos with their places, in a session those to look at first. */
function ordered() {
  const all = state.photos.map((one, index) => [one, index, ""]), session = state.mode === "session" && state.session;
  if (!session) return all;
  const ranks = new Map(session.told.photos.map((one, rank) => [one.number, { rank, ...one }]));
  const of = (one) => ranks.get(session.numbers.get(one));
  return all.map(([one, index]) => [one, index, of(one)?.doubt ? percent(of(one).doubt) : ""]).sort((a, b) => (of(a[0])?.rank ?? 1e6) - (of(b[0])?.rank ?? 1e6));
}

// The question --------------------------------------------------------------------------------------------------------

function addLabels(text) {
  const words = text.split(/[,\n]/).map((word) => word.trim()).filter(Boolean);
  for (const word of words) if (!state.labels.includes(word)) state.labels.push(word);
  renderChips();
}

function renderChips() {
  const answer = found();
  for (const chip of $("chips").querySelectorAll(".chip")) chip.remove();
  $("label").before( // it stays where it is, and keeps its focus
    ...state.labels.map((word, index) => {
      const name = word.split("|")[0].trim(), number = answer?.told.names.indexOf(name) ?? -1;
      const colour = answer?.told.colours?.[number];
      return element("span", { class: "chip" }, ...(colour ? [swatch(colour)] : []), element("span", { text: word }),
        element("button", { type: "button", "aria-label": `Remove ${word}`, text: "×", on: { click: () => (state.labels.splice(index, 1), renderChips(), $("label").focus()) } }));
    }),
  );
  $("label").placeholder = state.labels.length ? "" : state.mode === "regions" ? "cat, dog; empty: common things" : "cat, dog | puppy, sky";
}

function chosenModel() {
  return state.offer.models.find((model) => model.name === $("model").value) ?? state.offer.models[0];
}

function renderSettings() {
  const able = state.offer.models.filter((model) => model.tasks.includes(state.mode));
  const keep = $("model").value;
  $("model").replaceChildren(...able.map((model) => element("option", { value: model.name, text: model.name })));
  if (able.some((model) => model.name === keep)) $("model").value = keep;
  $("model").hidden = $("model-label").hidden = able.length < 2;
  renderModel();
  $("proposals").replaceChildren(...state.offer.proposals.map((one) => element("option", { value: one.name, text: one.name })));
  $("proposals").parentElement.hidden = state.offer.proposals.length < 2;
  $("settings").hidden = ["anomaly", "classify"].includes(state.mode);
}

function renderModel() {
  const model = chosenModel();
  $("recipe").replaceChildren(...model.recipes.map((recipe) => element("option", { value: recipe.name, text: recipe.name, title: recipe.about })));
  $("recipe-label").hidden = model.recipes.length < 2;
  $("model-hint").textContent = $("model").hidden ? `${model.name}: ${model.about}` : model.about;
  $("normal-note").textContent = model.normal_needed ? "(needed by this model)" : "(optional)";
}

function renderTools() {
  const clicks = state.offer.proposals.find((one) => one.name === $("proposals").value)?.clicks;
  const able = Object.entries(tools()).filter(([name]) => name !== "point" || clicks);
  if (!able.some(([name]) => name === state.tool)) state.tool = "look";
  renew($("tools"),
    ...able.map(([name, [title]]) =>
      element("button", { type: "button", role: "radio", "aria-checked": String(state.tool === name), text: title, on: { click: () => pickTool(name) } })),
  );
  $("tools-hint").textContent = tools()[state.tool][1];
  $("overlay").classList.toggle("drawing", drawing());
  if (state.mode === "regions" && !state.running) $("run").textContent = state.tool === "look" ? "Find and name" : "Name";
  const one = photo(), lists = one && state.mode === "regions" ? [["boxes", one.boxes], ["points", one.points]] : [];
  $("prompts").replaceChildren(
    ...lists.flatMap(([kind, list]) =>
      list.map((numbers, index) =>
        element("li", {}, element("span", { text: `${kind === "boxes" ? "box" : "point"} ${numbers.join(", ")}` }),
          element("button", { type: "button", class: "close", "aria-label": "Remove", text: "×", on: { click: () => (list.splice(index, 1), renderTools(), redraw()) } })))),
  );
}

function pickTool(name) {
  state.tool = name;
  if (name === "look" && state.mode === "regions" && photo()) [photo().boxes, photo().points] = [[], []];
  renderTools();
  redraw();
}

function addPrompt(numbers) {
  const one = photo();
  if (!one) return fail(new Error("Add a photo first."));
  const rounded = numbers.map((number) => Math.round(number));
  if (state.mode === "session") return rounded.length === 4 ? pickBox(rounded) : found() && pick(...rounded);
  if (rounded.length === 4) {
    const [x0, y0, x1, y1] = rounded;
    one.boxes.push([Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)]);
  } else one.points.push(rounded);
  renderTools();
  redraw();
  if (state.labels.length) run();
}

function renderNormal() {
  $("normal-thumbs").replaceChildren(
    ...state.normal.map((one, index) =>
      element("div", { class: "thumb" }, element("img", { src: one.url, alt: one.file.name }),
        element("button", { type: "button", class: "close", "aria-label": `Remove ${one.file.name}`, text: "×", on: { click: () => (state.normal.splice(index, 1), renderNormal()) } }))),
  );
}

function addNormal(files) {
  const room = state.offer.limits.normal - state.normal.length;
  if (files.length > room) fail(new Error(`This server compares with at most ${state.offer.limits.normal} pictures.`));
  state.normal.push(...files.slice(0, room).map((file) => ({ file, url: URL.createObjectURL(file) })));
  renderNormal();
}

function fields(one) {
  const labels = state.labels.length ? JSON.stringify(state.labels) : "";
  const background = $("background").value.trim(), model = $("model").value;
  const image = one.file;
  if (state.mode === "anomaly") return { image, model, item: $("item").value, normal: state.normal.map((each) => each.file) };
  if (state.mode === "classify") return { image, labels, model };
  if (state.mode === "segment") return { image, labels, model, recipe: $("recipe").value, background };
  const prompts = state.tool === "look" ? {} : { boxes: JSON.stringify(one.boxes), points: JSON.stringify(one.points) };
  return { image, labels, model, background, proposals: $("proposals").value, objects: String($("objects").checked), ...prompts };
}

// The answer ----------------------------------------------------------------------------------------------------------

const READ = {
  async segment(told) {
    const map = await decoded(told.map), near = await decoded(told.alternatives.map);
    return { layer: { ...map, colours: told.colours }, near: { ...near, ...told.alternatives } };
  },
  session: async (told) => ({ ...(await READ.segment(told)), units: await units(told.units) }),
  async regions(told) {
    const { width, height } = told.size, masks = told.regions.map((one) => fromRuns(one.segmentation));
    const layer = stacked(masks, told.regions.map((one) => one.area), width, height);
    return { masks, layer: { ...layer, groups: told.regions.map((one) => one.label), colours: told.colours } };
  },
  async anomaly(told) {
    const layer = await heat(told.map), [low, high] = told.range;
    const trusted = told.threshold && told.meta.references > 1; // one normal picture says little of what is rare
    const limit = trusted ? (told.threshold.pixel - low) / Math.max(high - low, 1e-12) : 0.5;
    return { layer, limit: Math.min(1, Math.max(0, limit)) };
  },
  async classify() {
    return {};
  },
};

async function askAbout(one, mode, signal) {
  const sent = fields(one);
  await read(one, mode, sent, await ask(mode, sent, { signal, busy }));
}

async function read(one, mode, sent, answer) {
  const told = await answer.json();
  one.answers[mode] = { told, sent, ...(await READ[mode](told)) };
}

const edits = (one, mode) => (one.edits[mode]?.length ? JSON.stringify(one.edits[mode]) : "");

/** Do something that takes a while, which the main button stops; errors are told. */
async function working(words, work) {
  if (state.running) return;
  [state.running, state.since] = [new AbortController(), performance.now()];
  try {
    become("busy", words);
    await work(state.running.signal);
    state.running = null;
    settle();
  } catch (error) {
    state.running = null;
    if (error.name === "AbortError") settle();
    else fail(error);
  }
}

function run(all = false) {
  if (state.running) return performance.now() - state.since > DOUBLE && state.running.abort();
  addLabels($("label").value);
  $("label").value = "";
  const mode = state.mode;
  if (!photo()) return fail(new Error("Drop a photo first."));
  if (["segment", "classify", "session"].includes(mode) && !state.labels.length) {
    fail(new Error("Say what to look for first: a word or several."));
    return $("label").focus();
  }
  if (mode === "anomaly" && chosenModel().normal_needed && !state.normal.length) return fail(new Error("This model needs normal pictures to compare with."));
  if (mode === "session") return working("Looking …", begin);
  const some = all ? [...state.photos] : [photo()], bad = [];
  return working("Looking …", async (signal) => {
    for (const [index, one] of some.entries()) {
      if (all) $("status").textContent = `Looking at photo ${index + 1} of ${some.length} …`;
      one.edits[mode] = []; // they were of the answer before
      if (!(await unlessBad(bad, askAbout(one, mode, signal), some.length))) continue;
      if (innerWidth < 900) $("view").scrollIntoView({ block: "start" });
      if (all) state.at = state.photos.indexOf(one);
      [state.only, state.picked, state.hover] = [null, null, null];
      render();
    }
    tellBad(bad);
  });
}

/** Whether a photo could be read; of several one that could not is kept for `tellBad`, and the others go on. */
async function unlessBad(bad, work, count) {
  try {
    await work;
    return true;
  } catch (error) {
    if (error.code !== "image" || count < 2) throw error;
    bad.push(sentence(error.message));
    return false;
  }
}

function tellBad(bad) {
  if (bad.length) throw new Error(bad.join(" "));
}

function render() {
  document.body.dataset.mode = state.mode;
  const one = photo(), answer = found();
  $("empty").hidden = Boolean(one);
  $("view").hidden = !one;
  $("bar").hidden = !answer?.layer;
  renderStrip();
  renderChips();
  renderTools();
  renderEdits();
  $("answer").hidden = !answer;
  const more = state.mode === "session" && state.session ? state.session.told.warnings : [];
  $("warnings").replaceChildren(...[...(answer?.told.warnings ?? []), ...more].map((text) => element("li", { text: sentence(text.replace(/ \([^()]*--[^()]*\)/g, "")) })));
  if (answer) {
    renderLegend();
    renderDownloads();
    renderFacts(answer.told);
    if (state.mode === "anomaly") $("limit").value = Math.round(1000 * answer.limit);
  }
  renderPicked();
  if (one) drawPhoto();
}

function shares() {
  const { told, layer } = found();
  const pixels = layer.ids.length, counts = new Map();
  for (const id of layer.ids) counts.set(id, (counts.get(id) ?? 0) + 1);
  return [...told.names.keys(), NOTHING].map((id) => [id, (counts.get(id) ?? 0) / pixels]).sort((a, b) => (b[0] !== NOTHING) - (a[0] !== NOTHING) || b[1] - a[1]);
}

/** Renew the buttons of a list; the one that had the focus, by its place, has it again. */
function renew(list, ...children) {
  const at = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...children);
  if (at >= 0) list.querySelectorAll("button")[at]?.focus();
}

function renderLegend() {
  const { told, layer, limit } = found();
  const named = (id) => (id === NOTHING ? "nothing" : told.names[id]);
  const item = (id, much, share) =>
    element("li", {},
      element("button", { type: "button", "aria-pressed": String(state.only === id), class: share === 0 ? "none" : "",
        on: { click: () => isolate(state.only === id ? null : id), pointerenter: (event) => event.pointerType === "mouse" && hoverGroup(id), pointerleave: () => hoverGroup(null) } },
        swatch(told.colours[id]), element("span", { class: "what", text: named(id) }), element("span", { class: "much", text: much })));
  $("answer-title").textContent = "Found";
  if (MAPPED.includes(state.mode)) {
    $("summary").textContent = "";
    renew($("legend"), ...shares().filter(([id, share]) => id !== NOTHING || share > 0).map(([id, share]) => item(id, percent(share), share)));
  } else if (state.mode === "regions") {
    $("summary").textContent = told.regions.length === 1 ? "One region." : `${told.regions.length} regions.`;
    const rows = told.regions.map((one, index) => [one, index]).sort((a, b) => (b[0].label >= 0) - (a[0].label >= 0) || b[0].score - a[0].score);
    renew($("legend"), ...rows.map(([one, index]) =>
        element("li", {}, element("button", { type: "button", "aria-pressed": String(state.picked?.index === index), on: { click: () => pickRegion(state.picked?.index === index ? null : index) } },
          swatch(told.colours[one.label]), element("span", { class: "what", text: one.name }), element("span", { class: "much", text: percent(one.score) })))));
  } else if (state.mode === "anomaly") {
    const over = layer.values.reduce((sum, value) => sum + (value >= limit), 0) / layer.values.length;
    const [low, high] = told.range, at = low + limit * (high - low);
    const verdict = told.is_anomalous === null ? "" : told.is_anomalous ? ": anomalous" : ": normal";
    $("answer-title").textContent = `Score ${told.score.toPrecision(3)}${verdict}`;
    const normal = told.meta.references, by = !normal
      ? "Scores compare between pictures of one model; normal pictures would set a threshold. "
      : `Normal pictures rarely score over ${told.threshold.image.toPrecision(3)}${normal > 1 ? "" : ", as far as one of them tells; add more"}. `;
    $("summary").textContent = `${by}${percent(over)} of the picture is over ${at.toPrecision(3)}.`;
    $("limit-value").textContent = at.toPrecision(3);
    renew($("legend"));
  } else {
    $("answer-title").textContent = told.name;
    $("summary").textContent = "";
    renew($("legend"), ...told.probabilities.map(([name, share]) => barRow(name, share)));
  }
}

function barRow(name, share, on) {
  const much = share === null ? [] : [element("meter", { min: 0, max: 1, value: share, "aria-hidden": "true" }), element("span", { class: "much", text: percent(share) })];
  const inner = [element("span", { class: "what", text: name }), ...much];
  return element("li", {}, on ? element("button", { type: "button", title: `Name it ${name}`, on: { click: on } }, ...inner) : element("div", { class: "row" }, ...inner));
}

function renderDownloads() {
  $("downloads").replaceChildren(
    ...state.offer.formats[state.mode].map((format) =>
      element("button", { type: "button", "data-format": format, text: FILES[format] ?? format, on: { click: () => download(format) } })),
  );
}

function download(format) {
  if (state.mode === "session") return takeAlong(format);
  const { sent } = found(), route = state.mode, one = photo();
  return working("Making the file …", async (signal) => {
    const answer = await ask(route, { ...sent, edits: edits(one, route), format }, { signal });
    await save(answer, `${one.file.name.replace(/\.[^.]*$/, "")}.${format}`);
  });
}

function renderFacts({ meta, size }) {
  const rows = [["size", `${size.width} x ${size.height}`], ...Object.entries(meta).filter(([, value]) => value !== null && value !== "" && value !== false)];
  $("facts").replaceChildren(
    ...rows.flatMap(([name, value]) => [element("dt", { text: name.replaceAll("_", " ") }), element("dd", { text: typeof value === "string" ? value : JSON.stringify(value) })]),
  );
}

// Looking at it -------------------------------------------------------------------------------------------------------

function size() {
  const told = found()?.told.size, bitmap = photo().bitmap;
  return told ? [told.width, told.height] : bitmap ? [bitmap.width, bitmap.height] : [640, 360];
}

function drawPhoto() {
  const [width, height] = size(), canvases = [$("photo"), $("overlay")];
  for (const canvas of canvases) [canvas.width, canvas.height] = canvasSize(width, height);
  const context = canvases[0].getContext("2d");
  context.fillStyle = "#888";
  context.fillRect(0, 0, canvases[0].width, canvases[0].height);
  if (photo().bitmap) context.drawImage(photo().bitmap, 0, 0, canvases[0].width, canvases[0].height);
  else {
    [context.fillStyle, context.font, context.textAlign] = ["#fff", "32px sans-serif", "center"];
    context.fillText("No preview of this file", canvases[0].width / 2, canvases[0].height / 2, canvases[0].width - 40);
  }
  fit();
  redraw();
}

function fit() {
  if (!photo()) return;
  const [width, height] = size(), room = $("view").clientWidth;
  const tall = Math.max(240, (innerWidth < 900 ? 0.6 : 0.74) * innerHeight);
  const scale = Math.min(room / width, tall / height, 4);
  $("frame").style.width = `${Math.floor(width * scale)}px`;
}

let waiting = 0;
function redraw() {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => {
    if (!photo()) return;
    const canvas = $("overlay"), context = canvas.getContext("2d"), answer = found();
    if (answer?.layer) {
      const mask = state.picked?.mask ?? null, only = state.hover ?? state.only;
      paint(context, answer.layer, { opacity: $("opacity").value / 100, outline: $("outline").checked, only, mask, limit: answer.limit });
    } else context.clearRect(0, 0, canvas.width, canvas.height);
    const drawn = state.mode === "regions" ? photo() : { boxes: [], points: [] };
    marks(context, canvas.width / size()[0], { boxes: drawn.boxes, points: drawn.points, draft: state.draft, cursor: state.cursor });
  });
}

function isolate(group) {
  [state.only, state.hover, state.picked] = [group, null, null];
  renderLegend();
  renderPicked();
  redraw();
}

function hoverGroup(group) {
  if (!MAPPED.includes(state.mode) || state.picked) return;
  state.hover = group;
  redraw();
}

/** What is at a pixel, in words. */
function told(x, y) {
  const { told, layer } = found(), at = y * layer.width + x;
  if (state.mode === "anomaly") {
    const [low, high] = told.range;
    return (low + layer.values[at] * (high - low)).toPrecision(3);
  }
  const id = layer.ids[at];
  if (state.mode === "regions") return id < 0 ? "no region" : `${told.regions[id].name} ${percent(told.regions[id].score)}`;
  return `${id < 0 ? "nothing" : told.names[id]} ${percent(layer.blue[at] / 255)}`;
}

function tip(x, y) {
  const answer = found(), here = $("tip");
  here.hidden = !answer?.layer || state.draft !== null;
  if (here.hidden) return;
  here.textContent = told(x, y);
  const [width, height] = size();
  here.style.left = `${(100 * (x + 0.5)) / width}%`;
  here.style.top = `${(100 * (y + 0.5)) / height}%`;
  here.classList.toggle("left", x > 0.6 * width);
  here.classList.toggle("above", y > 0.8 * height);
}

function place(event) {
  const box = $("overlay").getBoundingClientRect(), [width, height] = size();
  const clamp = (value, most) => Math.min(most - 1, Math.max(0, Math.floor(value)));
  return [clamp(((event.clientX - box.left) / box.width) * width, width), clamp(((event.clientY - box.top) / box.height) * height, height)];
}

function pick(x, y) {
  const answer = found();
  if (!answer?.layer || state.mode === "anomaly") return;
  if (state.mode === "regions") return pickRegion(answer.layer.ids[y * answer.layer.width + x]);
  const { layer, near, told } = answer;
  if (state.picked?.mask[y * layer.width + x]) return unpick();
  const mask = answer.units ? Uint8Array.from(answer.units.ids, (id) => id === answer.units.ids[y * layer.width + x]) : region(layer, x, y), cells = near.height * near.width;
  const cell = Math.floor((y * near.height) / layer.height) * near.width + Math.floor((x * near.width) / layer.width);
  const likely = Array.from({ length: near.count }, (_, k) => [near.ids[k * cells + cell], near.blue[k * cells + cell] / 255]);
  const id = layer.ids[y * layer.width + x], pixels = mask.reduce((sum, one) => sum + one, 0);
  state.picked = {
    x, y, mask, name: id < 0 ? "nothing" : told.names[id], colour: told.colours[id],
    note: `${percent(layer.blue[y * layer.width + x] / 255)} sure here; this region is ${percent(pixels / mask.length)} of the photo.`,
    likely: likely.filter(([, share]) => share >= 0.005).map(([which, share]) => [which < 0 ? "nothing" : told.names[which], share]),
  };
  afterPick();
}

function pickRegion(index) {
  if (index === null || index < 0) return unpick();
  const { told, layer, masks } = found(), one = told.regions[index], at = layer.ids.indexOf(index);
  state.picked = {
    index, mask: masks[index], name: one.name, colour: told.colours[one.label],
    x: at % layer.width, y: Math.floor(at / layer.width), hidden: at < 0,
    note: `Score ${percent(one.score)}; ${one.area} pixels, box ${one.box.map((side) => Math.round(side)).join(", ")}.`,
    likely: one.alternatives.filter(([, share]) => share >= 0.005),
  };
  afterPick();
}

function afterPick() {
  renderPicked();
  if (state.mode === "regions" || state.only !== null) [state.only, state.hover] = [null, null], renderLegend();
  redraw();
}

function unpick() {
  state.picked = null;
  renderPicked();
  if (found()) renderLegend();
  redraw();
}

function renderPicked() {
  const one = state.picked;
  $("picked").hidden = !one;
  if (!one) return;
  $("picked-name").textContent = one.name;
  $("picked-swatch").style.background = one.colour ? `rgb(${one.colour.join(",")})` : "none";
  $("picked-note").textContent = one.note;
  $("alternatives").replaceChildren(...one.likely.map(([name, share]) => barRow(name, share, () => rename(name))));
  $("known").replaceChildren(...found().told.names.map((name) => element("option", { value: name })));
  $("rename").hidden = Boolean(one.hidden);
}

function rename(name) {
  if (state.mode === "session") return correct(name.trim());
  const { x, y } = state.picked, own = (photo().edits[state.mode] ??= []);
  if (!name.trim() || name === state.picked.name) return;
  own.push([x, y, name.trim()]);
  rerun(() => own.pop());
}

/** Ask the same again, with other corrections; `otherwise` takes them back. */
function rerun(otherwise) {
  const one = photo(), { sent } = found(), mode = state.mode;
  return working("Renaming …", async (signal) => {
    const answer = await ask(mode, { ...sent, edits: edits(one, mode) }, { signal }).catch((error) => {
      otherwise();
      throw error;
    });
    await read(one, mode, sent, answer);
    state.picked = null;
    render();
  });
}

function renderEdits() {
  const count = state.mode === "session" ? (state.session?.told.corrections ?? 0) : (photo()?.edits[state.mode]?.length ?? 0);
  $("edits").hidden = !count || !found();
  const disagree = state.session?.told.photos.some((one) => one.doubt);
  $("session-note").textContent = !count ? "Click what is wrong, or draw a box around it, then name it."
    : disagree ? "Photos where words and corrections disagree come first; the number is how much of them does." : "";
  if (state.mode === "session") return ($("edits-note").textContent = count === 1 ? "One correction." : `${count} corrections.`);
  $("edits-note").textContent = count === 1 ? "One region was renamed; files have it too." : `${count} regions were renamed; files have them too.`;
}

// A session: photos that learn from corrections --------------------------------------------------------------------

/** Begin a session with all photos, or bring the one there is up to date. */
async function begin(signal) {
  const setup = JSON.stringify([state.labels, $("model").value, $("recipe").value, $("background").value.trim()]);
  if (state.session?.setup !== setup) {
    if (state.session) ask("session/end", { session: state.session.key }).catch(() => {});
    await open(setup, signal);
  }
  const { numbers } = state.session, missing = state.photos.filter((one) => !numbers.has(one)), bad = [];
  for (const [index, one] of missing.entries()) {
    $("status").textContent = `Looking at photo ${index + 1} of ${missing.length} …`;
    await unlessBad(bad, addTo(one, signal), state.photos.length);
  }
  state.session.version++;
  await fetchLabels(signal);
  tellBad(bad);
}

const busy = (seconds) => ($("status").textContent = `The server is busy; trying again in ${seconds} s …`);

async function open(setup, signal) {
  const [words, model, recipe, background] = JSON.parse(setup);
  const told = await (await ask("session", { labels: JSON.stringify(words), model, recipe, background }, { signal, busy })).json();
  state.session = { key: told.session, told, setup, numbers: new Map(), version: 0, taught: [] };
}

async function addTo(one, signal) {
  const told = await (await askSession("photo", { image: one.file }, null, signal)).json();
  state.session.told = told;
  state.session.numbers.set(one, told.photos.length - 1);
}

/** Ask the session, of a photo or of all; one that has ended begins again, and is told all that was said in it. */
async function askSession(what, fields, one, signal) {
  const send = (route, more, which) => {
    const { key, numbers } = state.session;
    return ask(`session/${route}`, { session: key, ...(which ? { photo: String(numbers.get(which)) } : {}), ...more }, { signal, busy });
  };
  try {
    return await send(what, fields, one);
  } catch (error) {
    if (error.code !== "session") throw error;
  }
  $("status").textContent = "The session had ended; beginning again …";
  const { setup, numbers, version, taught } = state.session;
  await open(setup, signal);
  for (const each of numbers.keys()) {
    state.session.told = await (await send("photo", { image: each.file })).json();
    state.session.numbers.set(each, state.session.told.photos.length - 1);
  }
  for (const each of taught) state.session.told = await (await send(each.what, each.fields, each.one)).json();
  Object.assign(state.session, { taught, version: version + 1 });
  return send(what, fields, one);
}

async function fetchLabels(signal) {
  const one = photo();
  if (!state.session?.numbers.has(one)) return;
  await read(one, "session", null, await askSession("labels", {}, one, signal));
  one.answers.session.version = state.session.version;
  state.picked = null;
  render();
}

/** The labels of the photo that is shown, if they are older than the last correction. */
function freshen() {
  const { session } = state;
  if (!session?.numbers.has(photo()) || found()?.version === session.version) return;
  if (!state.running) working("Labelling …", fetchLabels);
}

function teach(what, fields, next = false) {
  return working("Learning …", async (signal) => {
    const one = what === "undo" || what === "restore" ? null : photo();
    const told = await (await askSession(what, fields, one, signal)).json();
    const { session } = state;
    session.taught.push({ what, fields, one });
    session.told = told;
    session.version++;
    if (next) {
      const first = session.told.photos.find((one) => one.number !== session.numbers.get(photo()));
      const at = state.photos.findIndex((one) => first && session.numbers.get(one) === first.number);
      if (at >= 0) [state.at, state.cursor] = [at, null];
    }
    await fetchLabels(signal);
    const { missing } = session.told;
    if (missing.length) throw new Error(`The file also speaks of ${missing.join(", ")}: add those photos, then open it again.`);
  });
}

async function correct(name) {
  const one = state.picked, [width, height] = size();
  if (!name || name === one.name) return;
  const where = one.box ? { box: JSON.stringify(one.box) } : one.painted
    ? { mask: await maskFile(one.mask, width, height) } : { point: JSON.stringify([one.x, one.y]) };
  await teach("correct", { name, ...where });
  if (document.body.dataset.state === "done" && name !== "nothing" && !state.labels.some((word) => word.split("|").some((each) => each.trim() === name))) {
    state.labels.push(name);
    state.session.setup = JSON.stringify([state.labels, ...JSON.parse(state.session.setup).slice(1)]);
    renderChips();
  }
}

function pickBox([x0, y0, x1, y1]) {
  const [width, height] = size(), mask = new Uint8Array(width * height);
  for (let y = Math.max(0, y0); y < Math.min(height, y1); y++) mask.fill(1, y * width + Math.max(0, x0), y * width + Math.min(width, x1));
  state.picked = { box: [x0, y0, x1, y1], mask, ...unnamed("This box", "What is in it?") };
  afterPick();
  $("new-name").focus();
}

const unnamed = (name, note) => ({ name, note, colour: null, likely: [...found()?.told.names ?? [], "nothing"].map((each) => [each, null]) });

function stroke([x0, y0], [x1, y1]) {
  const [width, height] = size(), reach = Math.max(2, Math.round(Math.max(width, height) / 50));
  if (!state.picked?.painted) state.picked = { painted: true, mask: new Uint8Array(width * height), ...unnamed("What you painted", "More strokes add to it.") };
  const { mask } = state.picked, steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0)));
  for (let step = 0; step <= steps; step++) {
    const cx = Math.round(x0 + ((x1 - x0) * step) / steps), cy = Math.round(y0 + ((y1 - y0) * step) / steps);
    for (let y = Math.max(0, cy - reach); y <= Math.min(height - 1, cy + reach); y++) {
      const half = Math.floor(Math.sqrt(reach * reach - (y - cy) * (y - cy)));
      mask.fill(1, y * width + Math.max(0, cx - half), y * width + Math.min(width, cx + half + 1));
    }
  }
  redraw();
}

function pickPainted() {
  if (state.picked) afterPick();
}

/** Save the session, or a file of the photo. */
function takeAlong(format) {
  const one = photo();
  return working("Making the file …", async (signal) => {
    await save(await (format ? askSession("labels", { format }, one, signal) : askSession("coco", {}, null, signal)), `${one.file.name.replace(/\.[^.]*$/, "")}.${format ?? "coco.json"}`);
  });
}

const reopen = (file) => file && teach("restore", { file });

// Wiring --------------------------------------------------------------------------------------------------------------

function setMode(mode) {
  state.mode = mode;
  [state.only, state.hover, state.picked, state.draft] = [null, null, null, null];
  for (const tab of $("modes").children) tab.setAttribute("aria-selected", String(tab.dataset.mode === mode));
  for (const tab of $("modes").children) tab.tabIndex = tab.dataset.mode === mode ? 0 : -1;
  document.body.dataset.mode = mode;
  $("about").textContent = ABOUT[mode];
  $("tip").hidden = true;
  renderSettings();
  render();
  settle();
  if (mode === "session" && photo()) freshen();
}

async function example({ file, files = [file], mode, labels = [], item = "", normal, model, background = "", objects = false }) {
  const load = async (name) => new File([await (await fetch(`examples/${name}`)).blob()], name);
  const suited = state.offer.models.find((one) => model.test(one.name) && one.tasks.includes(mode));
  setMode(mode);
  if (suited) $("model").value = suited.name;
  renderModel();
  state.labels = [...labels];
  [$("item").value, $("background").value, $("objects").checked] = [item, background, objects];
  if (normal) [state.normal, state.tool] = [[], "look"], addNormal([await load(normal)]);
  await addPhotos(await Promise.all(files.map(load)));
  await run();
}

function renderExamples() {
  const offered = EXAMPLES.filter(({ mode, model }) => state.offer.models.some((one) => model.test(one.name) && one.tasks.includes(mode)));
  $("examples").replaceChildren(
    ...offered.map((one) =>
      element("button", { type: "button", on: { click: () => example(one).catch(fail) } }, element("img", { src: `examples/${one.file ?? one.files[0]}`, alt: "" }), element("span", { text: one.title }))),
  );
}

const pictures = (list) => [...list].filter((file) => file.type.startsWith("image/") || !file.type);

function wire() {
  $("form").addEventListener("submit", (event) => (event.preventDefault(), run()));
  $("run-all").addEventListener("click", () => run(true));
  $("choose").addEventListener("click", () => $("files").click());
  $("normal-choose").addEventListener("click", () => $("normal-files").click());
  for (const [input, add] of [[$("files"), addPhotos], [$("normal-files"), addNormal]]) {
    input.addEventListener("change", () => {
      add([...input.files]);
      input.value = "";
    });
  }
  $("label").addEventListener("keydown", (event) => {
    if (event.key === "," || (event.key === "Enter" && $("label").value.trim())) {
      event.preventDefault();
      addLabels($("label").value);
      $("label").value = "";
      $("label").focus();
    } else if (event.key === "Backspace" && !$("label").value && state.labels.length) {
      state.labels.pop();
      renderChips();
      $("label").focus();
    }
  });
  $("label").addEventListener("paste", (event) => {
    const text = event.clipboardData.getData("text");
    if (!/[,\n]/.test(text)) return;
    event.preventDefault();
    addLabels(text);
    $("label").focus();
  });
  $("chips").addEventListener("click", (event) => event.target === $("chips") && $("label").focus());
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const numbers = $("prompt").value.split(/[\s,]+/).filter(Boolean).map(Number);
    if (![2, 4].includes(numbers.length) || !numbers.every(Number.isFinite)) return fail(new Error("Give two numbers for a point, or four for a box, in pixels."));
    state.tool = numbers.length === 4 ? "box" : "point";
    $("prompt").value = "";
    addPrompt(numbers);
  });
  $("rename").addEventListener("submit", (event) => {
    event.preventDefault();
    rename($("new-name").value);
    $("new-name").value = "";
  });
  $("undo").addEventListener("click", () => {
    if (state.mode === "session") return teach("undo", {});
    const own = photo().edits[state.mode], last = own.pop();
    rerun(() => own.push(last));
  });
  $("confirm").addEventListener("click", () => teach("confirm", {}, true));
  $("next").addEventListener("click", () => show(ordered().find(([one, index]) => index !== state.at && state.session.numbers.has(one))?.[1] ?? state.at));
  $("save-session").addEventListener("click", () => takeAlong());
  $("open-session").addEventListener("click", () => $("session-file").click());
  $("session-file").addEventListener("change", () => (reopen($("session-file").files[0]), ($("session-file").value = "")));
  addEventListener("pagehide", () => {
    const form = new FormData();
    if (state.session) form.append("session", state.session.key), navigator.sendBeacon("v1/session/end", form);
  });
  $("unpick").addEventListener("click", unpick);
  $("save-mask").addEventListener("click", async () => {
    const [width, height] = size();
    save(await maskFile(state.picked.mask, width, height), `${state.picked.name.replace(/[^\p{L}\p{N} -]/gu, "_") || "region"}_mask.png`);
  });
  for (const id of ["opacity", "outline"]) $(id).addEventListener("input", redraw);
  $("limit").addEventListener("input", () => {
    found().limit = $("limit").value / 1000;
    renderLegend();
    redraw();
  });
  $("model").addEventListener("change", renderModel);
  $("proposals").addEventListener("change", renderTools);
  wireCanvas();
  wireDrops();
  $("modes").addEventListener("keydown", (event) => {
    const tabs = [...$("modes").children], at = tabs.findIndex((tab) => tab.dataset.mode === state.mode);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1 }[event.key];
    if (next !== undefined) tabs.at(next % tabs.length).focus(), tabs.at(next % tabs.length).click();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.picked) unpick();
  });
  new ResizeObserver(fit).observe($("view"));
  addEventListener("resize", fit);
  $("theme").addEventListener("click", () => theme(next[document.documentElement.dataset.theme ?? "auto"]));
}

const next = { auto: "light", light: "dark", dark: "auto" };
function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").textContent = { auto: "◐", light: "☀", dark: "☾" }[name];
  $("theme").title = `Colours: ${name}`;
  try {
    localStorage.setItem("theme", name);
  } catch {
    // not kept, then
  }
}

/** Whether dragging draws. */
const drawing = () => ["regions", "session"].includes(state.mode) && state.tool !== "look";

function wireCanvas() {
  const canvas = $("overlay");
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    from = place(event);
    if (drawing() && state.tool !== "point") canvas.setPointerCapture(event.pointerId);
    if (drawing() && state.tool === "paint" && found()) stroke(from, from);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (from && drawing() && state.tool === "box" && event.buttons) {
      state.draft = [Math.min(from[0], x), Math.min(from[1], y), Math.max(from[0], x) + 1, Math.max(from[1], y) + 1];
      redraw();
    }
    if (from && drawing() && state.tool === "paint" && event.buttons && found()) stroke(from, [x, y]), (from = [x, y]);
    tip(x, y);
  });
  canvas.addEventListener("pointerup", (event) => {
    const [x, y] = place(event), draft = state.draft;
    state.draft = null;
    if (!from) return;
    from = null;
    if (draft && draft[2] - draft[0] > 2 && draft[3] - draft[1] > 2) return addPrompt(draft);
    if (drawing() && state.tool === "point") return addPrompt([x, y]);
    if (drawing() && state.tool === "paint") return found() && pickPainted();
    pick(x, y);
    tip(x, y);
  });
  canvas.addEventListener("pointercancel", () => ([from, state.draft] = [null, null]));
  canvas.addEventListener("pointerleave", () => ($("tip").hidden = state.cursor === null));
  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 20 : 4, [width, height] = size();
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!move && !["Enter", " "].includes(event.key)) return;
    event.preventDefault();
    const [x, y] = state.cursor ?? [Math.floor(width / 2), Math.floor(height / 2)];
    if (move) state.cursor = [Math.min(width - 1, Math.max(0, x + move[0])), Math.min(height - 1, Math.max(0, y + move[1]))];
    else if (drawing() && state.tool === "point") addPrompt([x, y]);
    else pick(x, y);
    tip(...(state.cursor ?? [x, y]));
    if (found()?.layer) $("status").textContent = $("tip").textContent;
    redraw();
  });
  canvas.addEventListener("blur", () => ((state.cursor = null), ($("tip").hidden = true), redraw()));
}

function wireDrops() {
  let depth = 0;
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => files(event) && (depth++, ($("veil").hidden = false)));
  addEventListener("dragleave", (event) => files(event) && --depth <= 0 && ($("veil").hidden = true));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    [depth, $("veil").hidden] = [0, true];
    const dropped = pictures(event.dataTransfer.files), box = $("normal").getBoundingClientRect();
    const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    if (!dropped.length) return files(event) ? fail(new Error("That is no picture; drop a photo.")) : undefined;
    if (state.mode === "anomaly" && inside) addNormal(dropped);
    else addPhotos(dropped);
  });
  addEventListener("paste", (event) => {
    const pasted = pictures(event.clipboardData.files);
    if (pasted.length) addPhotos(pasted);
  });
}

async function start() {
  let kept = "auto";
  try {
    kept = localStorage.getItem("theme") ?? "auto";
  } catch {
    // no storage here
  }
  theme(next[kept] ? kept : "auto");
  try {
    state.offer = await catalogue();
  } catch (error) {
    return fail(error);
  }
  const able = Object.keys(MODES).filter((mode) => state.offer.models.some((model) => model.tasks.includes(mode)));
  $("modes").replaceChildren(
    ...able.map((mode) => element("button", { type: "button", role: "tab", "data-mode": mode, text: MODES[mode], on: { click: () => setMode(mode) } })),
  );
  renderExamples();
  wire();
  setMode("segment");
}

start();
