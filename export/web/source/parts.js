// The binary parts of the page: gzip in base64 within a single file, or files beside the page.

/**
 * Reads and unpacks one part.
 * @param {{base64?: string, url?: string}} part
 * @returns {Promise<Uint8Array>}
 */
export async function readPart(part) {
  const packed = part.base64 === undefined ? await download(part.url) : fromBase64(part.base64);
  // Some servers send .gz files with "Content-Encoding: gzip"; these arrive unpacked.
  if (packed[0] !== 0x1f || packed[1] !== 0x8b) return packed;
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

async function download(/** @type {string} */ url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} could not be loaded: the server answered ${answer.status}.`);
  return new Uint8Array(await answer.arrayBuffer());
}

function fromBase64(/** @type {string} */ text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < bytes.length; place++) bytes[place] = binary.charCodeAt(place);
  return bytes;
}
