"use strict";
const { names, colours, photos } = JSON.parse(document.getElementById("data").textContent);
const [main, legend, opacity, warned, search] = ["main", "#legend", "#opacity", "#warned", "#search"].map((one) => document.querySelector(one));
let only = null; // the selected label
const percent = (share) => (share >= 0.0995 ? `${Math.round(100 * share)} %` : share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`);

function made(kind, text = "", name = "") {
  const element = document.createElement(kind);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

async function numbers(photo) {
  // Red + 256 green is the class, 65535 nothing.
  const bytes = Uint8Array.from(atob(photo.map), (sign) => sign.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return Int32Array.from({ length: canvas.width * canvas.height }, (_, at) => data[4 * at] + 256 * data[4 * at + 1]);
}

async function paint(photo) {
  if (!photo.near || photo.figure.hidden) return;
  photo.ids ??= numbers(photo);
  const ids = await photo.ids, { canvas } = photo, context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  ids.forEach((id, at) => {
    if (id === 65535 || (only !== null && id !== only)) {
      image.data[4 * at + 3] = only === null ? 0 : 150; // other pixels are dark
      return;
    }
    image.data.set(colours[id], 4 * at);
    image.data[4 * at + 3] = 2.55 * opacity.value;
  });
  context.putImageData(image, 0, 0);
  canvas.dataset.painted = `${only} ${opacity.value}`;
}

function show() {
  let shown = 0;
  for (const photo of photos) {
    const fits = (only === null || photo.shares.some(([id]) => id === only)) && (!warned.checked || photo.warnings.length > 0);
    photo.figure.hidden = !fits;
    shown += fits;
    paint(photo);
  }
  document.getElementById("count").textContent = `${shown} of ${photos.length} photos`;
  for (const button of legend.children) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.id) === only));
    button.hidden = !names[button.dataset.id].toLowerCase().includes(search.value.trim().toLowerCase());
  }
}

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const photo = photos[target.dataset.number];
    photo.near = isIntersecting;
    if (!isIntersecting) photo.ids = undefined; // keeps only visible photos in memory
    paint(photo);
  }
}, { rootMargin: "400px" });

const counts = new Map();
photos.forEach((photo, number) => {
  const figure = (photo.figure = made("figure")), frame = made("span", "", "frame"), caption = made("figcaption");
  figure.dataset.number = number;
  const image = made("img"), canvas = (photo.canvas = made("canvas"));
  [image.src, image.alt, image.loading] = [`data:image/jpeg;base64,${photo.photo}`, photo.name, "lazy"];
  [canvas.width, canvas.height] = [image.width, image.height] = [photo.width, photo.height];
  frame.append(image, canvas);
  const tip = made("p", "", "tip");
  frame.style.setProperty("--ratio", photo.width / photo.height);
  [frame.tabIndex, frame.role, frame.ariaLabel] = [0, "button", "larger or smaller"];
  frame.addEventListener("click", () => figure.classList.toggle("large"));
  frame.addEventListener("keydown", ({ key }) => key === "Enter" && frame.click());
  frame.addEventListener("pointermove", async (event) => {
    const box = canvas.getBoundingClientRect(), ids = await (photo.ids ?? []);
    const x = Math.floor(((event.clientX - box.left) / box.width) * canvas.width), y = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
    tip.textContent = names[ids[y * canvas.width + x]] ?? "nothing";
  });
  const found = photo.shares.map(([id, share]) => `${names[id]} ${percent(share)}`).join(", ") || "nothing found";
  caption.append(made("h2", photo.name), made("p", found, "found"), tip);
  if (photo.warnings.length) {
    const list = made("ul");
    list.append(...photo.warnings.map((text) => made("li", text)));
    caption.append(list);
  }
  figure.append(frame, caption);
  main.append(figure);
  for (const [id] of photo.shares) counts.set(id, (counts.get(id) ?? 0) + 1);
  near.observe(figure);
});
for (const [id, count] of [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0])) {
  const button = made("button"), swatch = made("i");
  button.dataset.id = id;
  swatch.style.background = `rgb(${colours[id]})`;
  button.title = names[id];
  button.append(swatch, made("span", names[id]), made("small", String(count)));
  button.addEventListener("click", () => {
    only = only === id ? null : id;
    show();
  });
  legend.append(button);
}
for (const control of [opacity, warned, search]) control.addEventListener("input", show);
show();
