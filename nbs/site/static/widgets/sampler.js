// The sampler of Cola DLM over exported graphs: blocks of noise to latents, latents to tokens. Runs where `ort` does.
import { noiseOf } from "./random.js";

// Keys and values of past latents: (layers, 1, heads, length, dim).
class Cache {
  constructor({ layers, heads, dim }) {
    Object.assign(this, { layers, heads, dim, length: 0, keys: new Float32Array(0), values: new Float32Array(0) });
  }

  // Put new ones behind the past; of several rows, which are (layers, rows, heads, n, dim), the first.
  append(keys, values) {
    this.keys = this.joined(this.keys, keys);
    this.values = this.joined(this.values, values);
    this.length += keys.dims[3];
  }

  joined(old, { data, dims: [, rows, , added] }) {
    const { layers, heads, dim, length } = this;
    const out = new Float32Array(layers * heads * (length + added) * dim);
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const lane = layer * heads + head;
        const to = lane * (length + added) * dim;
        const from = (layer * rows * heads + head) * added * dim;
        out.set(old.subarray(lane * length * dim, (lane + 1) * length * dim), to);
        out.set(data.subarray(from, from + added * dim), to + length * dim);
      }
    }
    return out;
  }
}

// Whether a latent sees another: all of its own block, and the blocks before. Without a block size, everything.
const sees = (query, key, size) => !size || Math.floor(key / size) <= Math.floor(query / size);

export class Sampler {
  // `graphs` holds a session for each of encode, decode, times and step.
  constructor(ort, graphs, model, tokenizer) {
    Object.assign(this, { ort, graphs, model, tokenizer });
  }

  tensor(data, dims) {
    if (data instanceof Float32Array) return new this.ort.Tensor("float32", data, dims);
    return new this.ort.Tensor("int64", BigInt64Array.from(data, BigInt), dims);
  }

  // Positions of n latents and what they see: each row is { past, from, size }, `from` the first place that is not hidden.
  places(n, past, rows) {
    const positions = rows.flatMap(({ from }) => Array.from({ length: n }, (_, i) => past - from + i));
    const seen = rows.flatMap(({ from, size }) => Array.from({ length: n * (past + n) }, (_, at) => {
      const [query, key] = [past + Math.floor(at / (past + n)), at % (past + n)];
      return key >= from && sees(query - from, key - from, size) ? 1 : 0;
    }));
    const sight = new this.ort.Tensor("bool", Uint8Array.from(seen), [rows.length, n, past + n]);
    return { positions: this.tensor(positions, [rows.length, n]), sight };
  }

  stored({ layers, heads, dim, length, keys, values }) {
    const dims = [layers, 1, heads, length, dim];
    return { keys: this.tensor(keys, dims), values: this.tensor(values, dims) };
  }

  // The solver's times and, for each, the modulation of clean latents above that of latents at this time.
  async prepare(steps) {
    if (this.schedule?.steps === steps) return this.schedule;
    const times = this.model.times[steps];
    const { table } = await this.graphs.times.run({ t: this.tensor(Float32Array.from(times), [times.length]) });
    const [, channels] = table.dims;
    const rowOf = (at) => table.data.subarray(at * channels, (at + 1) * channels);
    const tables = times.map((_, at) => {
      const pair = new Float32Array(2 * channels);
      pair.set(rowOf(times.length - 1));
      pair.set(rowOf(at), channels);
      return this.tensor(pair, [2, channels]);
    });
    this.schedule = { steps, times, tables };
    return this.schedule;
  }

  // One pass of the prior: behind the past, and alone. `rows` says which latents are at the table's second time.
  async pass(z, table, rows, cache, places) {
    const n = rows.length;
    const twice = new Float32Array(2 * z.length);
    twice.set(z);
    twice.set(z, z.length);
    const row = this.tensor([...rows, ...rows], [2, n]);
    return this.graphs.step.run({ z: this.tensor(twice, [2, n, this.model.d]), table, row, ...this.stored(cache), ...places });
  }

  // Write clean latents, whole blocks, into the cache of the prior.
  async remember(z, cache) {
    const n = z.length / this.model.d;
    const row = { from: 0, size: this.model.block };
    const { new_keys, new_values } = await this.pass(z, this.schedule.tables.at(-1), Array(n).fill(0), cache, this.places(n, cache.length, [row, row]));
    cache.append(new_keys, new_values);
  }

  // Latents to the most probable tokens; with `keep` they become part of the past.
  async read(z, cache, keep) {
    const n = z.length / this.model.d;
    const places = this.places(n, cache.length, [{ from: 0, size: this.model.decoder.block }]);
    const { logits, new_keys, new_values } = await this.graphs.decode.run({ z: this.tensor(z, [1, n, this.model.d]), ...this.stored(cache), ...places });
    if (keep) cache.append(new_keys, new_values);
    const size = logits.dims[2];
    return Array.from({ length: logits.dims[1] }, (_, at) => {
      const row = logits.data.subarray(at * size, (at + 1) * size);
      return row.reduce((best, value, id) => (value > row[best] ? id : best), 0);
    });
  }

  // What the network says, read as the velocity dz/dt.
  velocity(raw, z, t) {
    const { prediction, skip } = this.model;
    if (prediction === "velocity" && !skip) return raw;
    if (prediction === "z0") return (z - raw) / Math.max(t, 1e-3);
    const c = (1 - t) ** 2 + t ** 2;
    return ((2 * t - 1) * z + Math.sqrt(c) * raw) / c;
  }

  // One Euler step; guided where there is a past, from the velocity alone through the one behind the past.
  async step(z, at, { pinned, guidance }, cache, places) {
    const { times, tables } = this.schedule;
    const rows = pinned.map((held) => (held ? 0 : 1));
    const { raw } = await this.pass(z, tables[at], rows, cache, places);
    const guided = cache.length > 0 && guidance !== 1;
    return z.map((value, i) => {
      const t = rows[Math.floor(i / this.model.d)] ? times[at] : 0;
      const behind = this.velocity(raw.data[i], value, t);
      const alone = guided ? this.velocity(raw.data[z.length + i], value, t) : behind;
      return value + (times[at + 1] - times[at]) * (alone + (guided ? guidance : 1) * (behind - alone));
    });
  }

  // Encode a prompt: its whole blocks go into both caches, the opening of the first block is returned.
  async begin(ids, prior, decoder) {
    const { d, block, pad, encoder } = this.model;
    const known = new Float32Array(block * d);
    if (!ids.length) return { known, opening: 0 };
    const padded = [...ids, ...Array((block - (ids.length % block)) % block).fill(pad)];
    const places = this.places(padded.length, 0, [{ from: 0, size: encoder.block }]);
    const { mean } = await this.graphs.encode.run({ ids: this.tensor(padded, [1, padded.length]), ...places });
    const opening = ids.length % block;
    const whole = (ids.length - opening) * d;
    if (whole) {
      await this.remember(mean.data.slice(0, whole), prior);
      await this.read(mean.data.slice(0, whole), decoder, true);
    }
    if (opening) known.set(mean.data.slice(whole));
    return { known, opening };
  }

  // Yields { block, t, ids } after each solver step, and { block, done, ids, latents } after each block; ids are all new tokens so far.
  async *write(prompt, { steps, guidance, seed, tokens }) {
    const { d, block, dit, decoder, stop } = this.model;
    const [prior, reader] = [new Cache(dit), new Cache(decoder)];
    const { times } = await this.prepare(steps);
    let { known, opening } = await this.begin(this.tokenizer.encode(prompt), prior, reader);
    const hidden = opening; // tokens of the first block that are the prompt's
    const cut = (ids) => {
      const found = ids.slice(hidden, hidden + tokens);
      const end = found.findIndex((id) => stop.includes(id));
      return end < 0 ? found : found.slice(0, end);
    };
    const written = [];
    for (let k = 0; k * block < tokens + hidden; k++) {
      const pinned = Array.from({ length: block }, (_, i) => i < opening);
      const hold = (z) => z.map((value, i) => (pinned[Math.floor(i / d)] ? known[i] : value));
      const places = this.places(block, prior.length, [{ from: 0, size: block }, { from: prior.length, size: block }]);
      let z = noiseOf([this.model.seed, seed, k], block * d);
      for (let at = 0; at < steps; at++) {
        z = await this.step(hold(z), at, { pinned, guidance }, prior, places);
        yield { block: k, t: times[at + 1], ids: cut([...written, ...await this.read(hold(z), reader, false)]) };
      }
      z = hold(z);
      written.push(...await this.read(z, reader, true));
      const ids = cut(written);
      const ended = ids.length >= tokens || ids.length < written.length - hidden;
      yield { block: k, done: true, ids, latents: z };
      if (ended) return;
      await this.remember(z, prior);
      opening = 0;
    }
  }
}
