// The page's side of the worker.

/** Calls functions of the worker by messages. */
export class Client {
  /**
   * @param {string} url Address of the script of the worker.
   * @param {WorkerType} type
   * @param {(problem: string) => void} fail Called if the script itself cannot be started.
   */
  constructor(url, type, fail) {
    this.calls = new Map();
    this.last = 0;
    this.worker = new Worker(url, { type });
    this.worker.onerror = (event) => fail(event.message || "The worker of the page could not be started.");
    this.worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.calls.get(id);
      this.calls.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
  }

  /**
   * @param {"open" | "draw" | "synthesize"} kind
   * @param {object} message See the function of this name in worker.js.
   * @returns {Promise<any>} What the function returns.
   */
  call(kind, message) {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject });
      this.worker.postMessage({ id, kind, ...message });
    });
  }
}

/**
 * Makes a function that works on the newest request only: while one is in work, later ones replace each other.
 * @param {(isStale: () => boolean) => Promise<void>} work
 * @returns {() => Promise<void>}
 */
export function newestOnly(work) {
  let wanted = false;
  let busy = false;
  return async () => {
    wanted = true;
    if (busy) return;
    busy = true;
    try {
      while (wanted) {
        wanted = false;
        await work(() => wanted);
      }
    } finally {
      busy = false;
    }
  };
}
