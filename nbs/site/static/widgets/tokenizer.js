// Byte-level BPE from a tokenizer.json: text to ids and back, as the library `tokenizers` does it.

// Bytes are written as visible characters: printable Latin ones as themselves, the others from 256 on.
function byteLetters() {
  const printable = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
}

const LETTERS = byteLetters();
const BYTES = new Map(LETTERS.map((letter, byte) => [letter, byte]));
const SPACE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"; // JavaScript's \s is another set
const PIECES = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`, "gu");

export class Tokenizer {
  constructor({ model }) {
    this.ids = new Map(Object.entries(model.vocab));
    this.tokens = new Map([...this.ids].map(([token, id]) => [id, token]));
    const pairs = model.merges.map((pair) => (Array.isArray(pair) ? pair.join(" ") : pair));
    this.ranks = new Map(pairs.map((pair, rank) => [pair, rank]));
  }

  // Merge neighbours, the earliest learned pair first.
  merge(parts) {
    while (parts.length > 1) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return parts;
      const pair = parts[at] + parts[at + 1];
      const joined = [];
      for (let i = 0; i < parts.length; i++) {
        const here = i + 1 < parts.length && this.ranks.get(`${parts[i]} ${parts[i + 1]}`) === best;
        joined.push(here ? pair : parts[i]);
        if (here) i++;
      }
      parts = joined;
    }
    return parts;
  }

  encode(text) {
    const found = [];
    for (const [piece] of text.matchAll(PIECES)) {
      const letters = Array.from(new TextEncoder().encode(piece), (byte) => LETTERS[byte]);
      for (const part of this.merge(letters)) found.push(this.ids.get(part));
    }
    return found;
  }

  decode(ids, silent = []) {
    const letters = ids.filter((id) => !silent.includes(id)).map((id) => this.tokens.get(id)).join("");
    const bytes = Array.from(letters).flatMap((letter) => (BYTES.has(letter) ? [BYTES.get(letter)] : [...new TextEncoder().encode(letter)]));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }
}
