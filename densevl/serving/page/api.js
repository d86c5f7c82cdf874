// The API: questions as forms, answers or one line that says why not.

const TRIES = 6;

/** What the server offers. */
export async function catalogue() {
  return (await answered(fetch("v1/models"))).json();
}

/** Ask a route; fields are strings, files, or lists of files. A server that is busy is asked again when it says. */
export async function ask(route, fields, { signal, busy = () => {} } = {}) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== "" && one != null) form.append(name, one);
  }
  for (let left = TRIES; ; left--) {
    const answer = await fetch(`v1/${route}`, { method: "POST", body: form, signal }).catch((error) => error);
    if (!(answer instanceof Response) || answer.status !== 503 || left <= 1) return answered(answer);
    const seconds = Number(answer.headers.get("retry-after")) || 1;
    busy(seconds);
    await pause(seconds, signal);
  }
}

async function answered(asked) {
  let answer;
  try {
    answer = await asked;
    if (!(answer instanceof Response)) throw answer;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  let told = {};
  try {
    told = JSON.parse(await answer.text()).error ?? {};
  } catch {
    // not from densevl; a proxy, perhaps
  }
  const error = new Error(told.message ? sentence(told.message) : `The server answered ${answer.status}.`);
  throw Object.assign(error, { code: told.code });
}

/** A message as a sentence. */
export const sentence = (text) =>
  text.replace(/^\p{Ll}(?=\p{L}*[\s,;:])/u, (first) => first.toUpperCase()) + (/[.?!]$/.test(text) ? "" : ".");

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(new DOMException("stopped", "AbortError"))));
  });
}

/** Save an answer, or a blob, as a file. */
export async function save(answer, fallback) {
  const named = answer instanceof Response && /filename\*=UTF-8''([^;]+)/.exec(answer.headers.get("content-disposition") ?? "");
  const url = URL.createObjectURL(answer instanceof Response ? await answer.blob() : answer);
  const link = document.createElement("a");
  [link.href, link.download] = [url, named ? decodeURIComponent(named[1]) : fallback];
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
