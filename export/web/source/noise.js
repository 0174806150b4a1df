// Noise and classes of a seed, bit for bit as numpy draws them in zoo/noise.py:
// Generator(PCG64([seed, index])).standard_normal(dtype=float32), and default_rng([seed, index, 1]).integers(classes).

const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

/** The 32-bit words of a non-negative integer, lowest first. */
function words(/** @type {bigint} */ number) {
  const found = [];
  do {
    found.push(Number(number & 0xffffffffn));
    number >>= 32n;
  } while (number);
  return found;
}

/** numpy's SeedSequence(entropy).generate_state(8), 32-bit words. */
function seedState(/** @type {number[]} */ entropy) {
  let hash = 0x43b0d7e5;
  const hashed = (value) => {
    value = (value ^ hash) >>> 0;
    hash = Math.imul(hash, 0x931e8875) >>> 0;
    value = Math.imul(value, hash) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mixed = (x, y) => {
    const value = (Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715)) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const pool = [0, 1, 2, 3].map((place) => hashed(entropy[place] ?? 0));
  for (let source = 0; source < 4; source++) {
    for (let target = 0; target < 4; target++) {
      if (source !== target) pool[target] = mixed(pool[target], hashed(pool[source]));
    }
  }
  for (const word of entropy.slice(4)) {
    for (let target = 0; target < 4; target++) pool[target] = mixed(pool[target], hashed(word));
  }
  hash = 0x8b51f9dd;
  return Array.from({ length: 8 }, (_, place) => {
    let value = (pool[place % 4] ^ hash) >>> 0;
    hash = Math.imul(hash, 0x58f38ded) >>> 0;
    value = Math.imul(value, hash) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  });
}

/** numpy's PCG64 bit generator (PCG XSL RR 128/64). */
class Pcg64 {
  /** @param {bigint[]} entropy Non-negative integers, as numpy's list of them. */
  constructor(entropy) {
    const state = seedState(entropy.flatMap(words)).map(BigInt);
    const pair = (place) => state[2 * place] | (state[2 * place + 1] << 32n);
    this.increment = ((((pair(2) << 64n) | pair(3)) << 1n) | 1n) & MASK_128;
    this.state = 0n;
    this.step();
    this.state = (this.state + ((pair(0) << 64n) | pair(1))) & MASK_128;
    this.step();
    /** @type {number | null} The upper half of the last 64 bits, which the next call returns. */
    this.half = null;
  }

  step() {
    this.state = (this.state * MULTIPLIER + this.increment) & MASK_128;
  }

  /** 32 random bits. */
  next() {
    if (this.half !== null) {
      const half = this.half;
      this.half = null;
      return half;
    }
    this.step();
    const high = this.state >> 64n;
    const both = (high ^ this.state) & MASK_64;
    const turn = high >> 58n;
    const output = ((both >> turn) | (both << ((64n - turn) & 63n))) & MASK_64;
    this.half = Number(output >> 32n);
    return Number(output & 0xffffffffn);
  }

  /** A float32 in [0, 1). */
  uniform() {
    return (this.next() >>> 8) / 16777216;
  }
}

// The ziggurat of numpy (256 layers, Marsaglia & Tsang): abscissas X, float32 widths, heights and integer bounds.
const TAIL = 3.6541528853610088;
const AREA = 0.00492867323399;
const density = (x) => Math.exp(-0.5 * x * x);
const X = new Float64Array(256);
const WIDTH = new Float32Array(256);
const HEIGHT = new Float32Array(256);
const BOUND = new Uint32Array(256);
X[255] = TAIL;
for (let layer = 255; layer > 1; layer--) {
  X[layer - 1] = Math.sqrt(-2 * Math.log(AREA / X[layer] + density(X[layer])));
}
WIDTH[0] = AREA / density(TAIL) / 2 ** 23;
HEIGHT[0] = 1;
BOUND[0] = Math.floor((TAIL / (AREA / density(TAIL))) * 2 ** 23);
for (let layer = 1; layer < 256; layer++) {
  WIDTH[layer] = X[layer] / 2 ** 23;
  HEIGHT[layer] = density(X[layer]);
  BOUND[layer] = layer > 1 ? Math.floor((X[layer - 1] / X[layer]) * 2 ** 23) : 0;
}
const TAIL_32 = Math.fround(TAIL);
const INVERSE_TAIL_32 = Math.fround(0.27366123732975828);

/** A standard normal float32. */
function normal(/** @type {Pcg64} */ random) {
  const f = Math.fround;
  const logarithm = (x) => f(Math.log1p(x));
  for (;;) {
    const bits = random.next();
    const layer = bits & 0xff;
    const magnitude = (bits >>> 9) & 0x7fffff;
    const x = f(magnitude * WIDTH[layer]) * ((bits >>> 8) & 1 ? -1 : 1);
    if (magnitude < BOUND[layer]) return x;
    if (layer === 0) {
      for (;;) {
        const beyond = f(-INVERSE_TAIL_32 * logarithm(-random.uniform()));
        const y = -logarithm(-random.uniform());
        if (f(y + y) > f(beyond * beyond)) {
          return (magnitude >>> 8) & 1 ? -f(TAIL_32 + beyond) : f(TAIL_32 + beyond);
        }
      }
    }
    if (f(f(f(HEIGHT[layer - 1] - HEIGHT[layer]) * random.uniform()) + HEIGHT[layer]) < density(x)) return x;
  }
}

/**
 * Noise z of the images `first` to `first + count - 1` of a seed.
 * @param {number} count
 * @param {number} zDim
 * @param {bigint} seed 0 to 2^64 - 1.
 * @param {number} first
 * @returns {Float32Array} Shape (count, zDim).
 */
export function drawNoise(count, zDim, seed, first = 0) {
  const noise = new Float32Array(count * zDim);
  for (let row = 0; row < count; row++) {
    const random = new Pcg64([seed, BigInt(first + row)]);
    for (let entry = 0; entry < zDim; entry++) noise[row * zDim + entry] = normal(random);
  }
  return noise;
}

/**
 * Random classes of the images `first` to `first + count - 1` of a seed.
 * @param {number} count
 * @param {number} classes At least 1.
 * @param {bigint} seed 0 to 2^64 - 1.
 * @param {number} first
 * @returns {number[]} Length count, each 0 to classes - 1.
 */
export function drawClasses(count, classes, seed, first = 0) {
  return Array.from({ length: count }, (_, row) => {
    if (classes === 1) return 0;
    const random = new Pcg64([seed, BigInt(first + row), 1n]);
    // Lemire's method, as numpy's bounded integers of at most 32 bits.
    const threshold = (2 ** 32 - classes) % classes;
    for (;;) {
      const product = BigInt(random.next()) * BigInt(classes);
      if (Number(product & 0xffffffffn) >= threshold) return Number(product >> 32n);
    }
  });
}
