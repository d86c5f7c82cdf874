// The overlay: what is painted over the photo. Layers have the photo's size, the canvas one that suits a screen.

const LARGEST = 2048, SMALLEST = 1000; // pixels along the long side of the canvas
const STOPS = [0, 0.35, 0.6, 0.8, 1];
const HEAT = [[20, 24, 82], [30, 120, 180], [250, 215, 60], [240, 110, 20], [180, 10, 30]];

/** The size of the canvas for a photo. */
export function canvasSize(width, height) {
  const longest = Math.max(width, height), scale = Math.min(LARGEST, Math.max(SMALLEST, longest)) / longest;
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

function heatColour(value) {
  const last = STOPS.findIndex((stop) => stop >= value);
  if (last <= 0) return HEAT[0];
  const share = (value - STOPS[last - 1]) / (STOPS[last] - STOPS[last - 1]);
  return HEAT[last].map((end, channel) => HEAT[last - 1][channel] * (1 - share) + end * share);
}
const HEATS = Array.from({ length: 256 }, (_, step) => heatColour(step / 255));

/**
 * Paint a layer.
 *
 * layer: {width, height, ids | values, groups, colours}: `ids` with a group each, groups with a colour; or `values` 0..1.
 * look: {opacity 0..1, outline, only: a group or null, mask: of the picked region or null, limit: of values}.
 */
export function paint(context, layer, look) {
  const { width, height } = context.canvas, image = context.createImageData(width, height), out = image.data;
  const columns = Int32Array.from({ length: width }, (_, x) => Math.floor(((x + 0.5) * layer.width) / width));
  const thick = Math.max(1, Math.round(Math.sqrt(width * height) / 450));
  const key = new Int32Array(width * height); // what outlines run between
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * layer.height) / height) * layer.width;
    for (let x = 0; x < width; x++, at++) {
      const from = row + columns[x];
      let colour = null, strength = 1;
      if (layer.values) {
        strength = Math.min(1, 0.15 + 1.4 * layer.values[from]); // what is normal stays a photo
        key[at] = layer.values[from] >= look.limit ? 1 : 0;
        colour = HEATS[Math.round(layer.values[from] * 255)];
      } else {
        const id = layer.ids[from], group = id < 0 ? -1 : layer.groups ? layer.groups[id] : id;
        key[at] = id;
        colour = group < 0 ? null : layer.colours[group];
        const dim = look.mask ? !look.mask[from] : look.only !== null && group !== look.only;
        if (dim) {
          out[4 * at] = out[4 * at + 1] = out[4 * at + 2] = 18;
          out[4 * at + 3] = 140;
          key[at] = -2;
          continue;
        }
      }
      if (!colour) continue;
      [out[4 * at], out[4 * at + 1], out[4 * at + 2]] = colour;
      out[4 * at + 3] = 255 * look.opacity * strength;
    }
  }
  if (look.outline) outline(out, key, width, height, thick, layer.values ? [255, 255, 255] : null);
  context.putImageData(image, 0, 0);
}

function outline(out, key, width, height, thick, fixed) {
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      let border = false;
      for (let d = 1; d <= thick && !border; d++) {
        border =
          (x + d < width && key[at + d] !== key[at]) || (y + d < height && key[at + d * width] !== key[at]) ||
          (x >= d && key[at - d] !== key[at]) || (y >= d && key[at - d * width] !== key[at]);
      }
      if (!border || key[at] < (fixed ? 1 : 0)) continue;
      if (fixed) [out[4 * at], out[4 * at + 1], out[4 * at + 2]] = fixed;
      out[4 * at + 3] = 255;
    }
  }
}

/** Draw boxes, points, the one that is being drawn, and the cursor of the keyboard; all in pixels of the photo. */
export function marks(context, scale, { boxes, points, draft, cursor }) {
  context.save();
  context.scale(scale, scale);
  const line = Math.max(1.5, context.canvas.width / 400) / scale;
  for (const [style, width] of [["#000a", 2 * line], ["#fff", line]]) {
    [context.strokeStyle, context.lineWidth] = [style, width];
    for (const [x0, y0, x1, y1] of draft ? [...boxes, draft] : boxes) context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    for (const [x, y] of points) {
      context.beginPath();
      context.arc(x, y, 3.5 * line, 0, 7);
      context.stroke();
    }
    if (cursor) {
      const [x, y, arm] = [...cursor, 5 * line];
      context.beginPath();
      context.moveTo(x - arm, y), context.lineTo(x + arm, y), context.moveTo(x, y - arm), context.lineTo(x, y + arm);
      context.stroke();
    }
  }
  context.restore();
}
