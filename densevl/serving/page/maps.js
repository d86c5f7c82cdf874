// Maps as the API sends them, and what is done with them: no drawing, no page.

export const NOTHING = -1;

/** Pixels of a PNG in base64: {width, height, data}, RGBA as stored. */
export async function pixels(base64) {
  const bytes = Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Numbers (red + 256 green, 65535 is nothing) and blue of a map. */
export async function decoded(base64) {
  const { width, height, data } = await pixels(base64);
  const ids = new Int32Array(width * height), blue = new Uint8Array(width * height);
  for (let i = 0; i < ids.length; i++) {
    const number = data[4 * i] + 256 * data[4 * i + 1];
    ids[i] = number === 65535 ? NOTHING : number;
    blue[i] = data[4 * i + 2];
  }
  return { width, height, ids, blue };
}

/** The 24-bit numbers of a map: {width, height, ids}. */
export async function units(base64) {
  const { width, height, data } = await pixels(base64);
  const ids = new Int32Array(width * height);
  for (let i = 0; i < ids.length; i++) ids[i] = data[4 * i] + 256 * data[4 * i + 1] + 65536 * data[4 * i + 2];
  return { width, height, ids };
}

/** The 16-bit numbers of a map, none of them special, as 0..1. */
export async function heat(base64) {
  const { width, height, data } = await pixels(base64);
  const values = new Float32Array(width * height);
  for (let i = 0; i < values.length; i++) values[i] = (data[4 * i] + 256 * data[4 * i + 1]) / 65535;
  return { width, height, values };
}

/** The connected pixels (up, down, left, right) of one number around a pixel, as a mask of 0 and 1. */
export function region({ width, height, ids }, x, y) {
  const mask = new Uint8Array(ids.length), wanted = ids[y * width + x];
  const open = [y * width + x];
  mask[open[0]] = 1;
  while (open.length) {
    const at = open.pop(), column = at % width;
    for (const next of [column ? at - 1 : -1, column < width - 1 ? at + 1 : -1, at - width, at + width]) {
      if (next >= 0 && next < ids.length && !mask[next] && ids[next] === wanted) {
        mask[next] = 1;
        open.push(next);
      }
    }
  }
  return mask;
}

/** COCO's compressed run lengths as a mask of 0 and 1, row by row. */
export function fromRuns({ size: [height, width], counts }) {
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const sign = counts.charCodeAt(at++) - 48;
      value |= (sign & 31) << shift;
      shift += 5;
      more = Boolean(sign & 32);
      if (!more && sign & 16) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  const mask = new Uint8Array(width * height);
  let at = 0;
  runs.forEach((length, index) => {
    if (index % 2) for (let i = at; i < at + length; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    at += length;
  });
  return mask;
}

/** Which mask is seen at each pixel: its number, smaller ones on top. */
export function stacked(masks, areas, width, height) {
  const ids = new Int32Array(width * height).fill(NOTHING);
  const order = areas.map((area, index) => index).sort((a, b) => areas[b] - areas[a] || b - a);
  for (const index of order) {
    const mask = masks[index];
    for (let i = 0; i < ids.length; i++) if (mask[i]) ids[i] = index;
  }
  return { width, height, ids };
}

/** A mask as a black and white PNG. */
export function maskFile(mask, width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < mask.length; i++) {
    image.data.fill(mask[i] ? 255 : 0, 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
