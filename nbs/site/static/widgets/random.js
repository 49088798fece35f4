// The library's random numbers: `config.stream` names a seed by its place, PyTorch draws normal numbers from it.

const ROUND = Uint32Array.from(Array.from({ length: 312 }, (_, n) => n).slice(2).filter((n) => {
  for (let i = 2; i * i <= n; i++) if (n % i === 0) return false;
  return true;
}).slice(0, 64), (prime) => fraction(Math.cbrt(prime)));
const START = Uint32Array.from([2, 3, 5, 7, 11, 13, 17, 19], (prime) => fraction(Math.sqrt(prime)));

function fraction(x) {
  return Math.floor((x - Math.floor(x)) * 2 ** 32);
}

const turn = (x, by) => (x >>> by) | (x << (32 - by));

function schedule(view, at) {
  const words = new Uint32Array(64);
  for (let i = 0; i < 64; i++) {
    if (i < 16) { words[i] = view.getUint32(at + 4 * i); continue; }
    const [a, b] = [words[i - 15], words[i - 2]];
    const low = turn(a, 7) ^ turn(a, 18) ^ (a >>> 3);
    const high = turn(b, 17) ^ turn(b, 19) ^ (b >>> 10);
    words[i] = words[i - 16] + low + words[i - 7] + high;
  }
  return words;
}

// SHA-256 of a short text, as bytes. The browser's own is missing on pages that come over plain http.
export function sha256(text) {
  const bytes = new TextEncoder().encode(text);
  const view = new DataView(new ArrayBuffer(64 * Math.ceil((bytes.length + 9) / 64)));
  bytes.forEach((byte, at) => view.setUint8(at, byte));
  view.setUint8(bytes.length, 0x80);
  view.setUint32(view.byteLength - 4, 8 * bytes.length);
  const sums = START.slice();
  for (let at = 0; at < view.byteLength; at += 64) {
    const words = schedule(view, at);
    let [a, b, c, d, e, f, g, h] = sums;
    for (let i = 0; i < 64; i++) {
      const first = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ROUND[i] + words[i]) | 0;
      const second = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [a, b, c, d, e, f, g, h] = [(first + second) | 0, a, b, c, (d + first) | 0, e, f, g];
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => { sums[i] += word; });
  }
  const out = new DataView(new ArrayBuffer(32));
  sums.forEach((word, i) => out.setUint32(4 * i, word));
  return new Uint8Array(out.buffer);
}

// The low 32 bits of a place's seed, all that the generator takes; a place is a list of whole numbers.
export function seedOf(place) {
  const digest = sha256(`[${place.join(", ")}]`);
  const low = BigInt(new DataView(digest.buffer).getUint32(0, true));
  const high = BigInt(new DataView(digest.buffer).getUint32(4, true));
  return Number((((high << 32n) | low) >> 1n) & 0xffffffffn);
}

// Mersenne Twister: whole numbers of 32 bits.
export function twister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let at = 624;

  function renew() {
    for (let i = 0; i < 624; i++) {
      const joined = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
    }
    at = 0;
  }

  return () => {
    if (at === 624) renew();
    let x = state[at++];
    x ^= x >>> 11;
    x ^= (x << 7) & 0x9d2c5680;
    x ^= (x << 15) & 0xefc60000;
    return (x ^ (x >>> 18)) >>> 0;
  };
}

// Sixteen numbers in [0, 1) at `from` become normal ones: the first eight give radii, the others angles.
function turnSixteen(values, from) {
  for (let i = from; i < from + 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(Math.fround(1 - values[i])));
    const angle = Math.fround(2 * Math.PI) * values[i + 8];
    values[i] = radius * Math.cos(angle);
    values[i + 8] = radius * Math.sin(angle);
  }
}

// Few numbers are drawn one pair at a time, in double precision.
function drawPairs(next, count) {
  const uniform = () => {
    const high = next();
    return Number(((BigInt(high) << 32n) | BigInt(next())) & ((1n << 53n) - 1n)) / 2 ** 53;
  };
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const angle = 2 * Math.PI * uniform();
    const radius = Math.sqrt(-2 * Math.log1p(-uniform()));
    values[i] = radius * Math.cos(angle);
    if (i + 1 < count) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}

// `torch.randn(count, generator=...)` on a CPU, up to rounding.
export function randn(seed, count) {
  const next = twister(seed);
  if (count < 16) return drawPairs(next, count);
  const uniform = () => (next() & 0xffffff) / 2 ** 24;
  const values = Float32Array.from({ length: count }, uniform);
  for (let i = 0; i + 16 <= count; i += 16) turnSixteen(values, i);
  if (count % 16) { // the last sixteen are drawn anew
    for (let i = count - 16; i < count; i++) values[i] = uniform();
    turnSixteen(values, count - 16);
  }
  return values;
}

// Noise of a block: seed of the settings, seed of the text, number of the block.
export const noiseOf = (place, count) => randn(seedOf(place), count);
