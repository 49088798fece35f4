// Formulas that the page computes itself; tests compare them with the library's numbers.

export const logit = (t) => Math.log(t / (1 - t));
export const sigmoid = (u) => 1 / (1 + Math.exp(-u));

const gauss = (x, mean, sd) => Math.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * Math.sqrt(2 * Math.PI));

// Density of t = sigmoid(loc + scale n) for a standard normal n.
export function timeDensity(t, loc, scale) {
  return gauss(logit(t), loc, scale) / (t * (1 - t));
}

// Mean of t, by the midpoint rule over n.
export function meanTime(loc, scale, cells = 4000, reach = 8) {
  const width = (2 * reach) / cells;
  let sum = 0;
  for (let i = 0; i < cells; i++) {
    const n = -reach + (i + 0.5) * width;
    sum += sigmoid(loc + scale * n) * gauss(n, 0, 1) * width;
  }
  return sum;
}

// The toy of Appendix F: eight answers on a circle, and nonsense everywhere else.
export const TOY = { radius: 4, width: 0.35, tau: 0.3, answers: 8, goodAt: 0.9 };

export function modes({ radius, answers } = TOY) {
  return Array.from({ length: answers }, (_, m) => [radius * Math.cos((m * Math.PI) / 4), radius * Math.sin((m * Math.PI) / 4)]);
}

function logSumExp(values) {
  const top = Math.max(...values);
  return top + Math.log(values.reduce((sum, value) => sum + Math.exp(value - top), 0));
}

// Log probabilities of the answers at a latent; what is missing to 1 is nonsense.
export function logAnswers([x, y], places = modes(), tau = TOY.tau) {
  const scores = places.map(([a, b]) => -((x - a) ** 2 + (y - b) ** 2) / (2 * tau ** 2));
  const total = logSumExp([...scores, -1 / (2 * tau ** 2)]);
  return scores.map((score) => score - total);
}

export function isGood(z, places = modes()) {
  return logAnswers(z, places).reduce((sum, value) => sum + Math.exp(value), 0) >= TOY.goodAt;
}

// Nodes of the midpoint rule for a plane normal of standard deviation 1: [x, y, weight], weights summing to 1.
export function planeNodes(cells = 61, reach = 6) {
  const line = Array.from({ length: cells }, (_, i) => -reach + ((i + 0.5) * 2 * reach) / cells);
  const raw = line.flatMap((x) => line.map((y) => [x, y, Math.exp(-0.5 * (x * x + y * y))]));
  const total = raw.reduce((sum, [, , weight]) => sum + weight, 0);
  return raw.map(([x, y, weight]) => [x, y, weight / total]);
}

// The prior: a bump of standard deviation `width` on each mode, moved by [dx, dy]; `gold` is the weight of the first.
export function priorOf({ width = TOY.width, dx = 0, dy = 0, gold = 1 / 8 } = {}) {
  const means = modes().map(([x, y]) => [x + dx, y + dy]);
  const weights = means.map((_, m) => (m === 0 ? gold : (1 - gold) / (means.length - 1)));
  return { means, weights, width };
}

export function logPrior([x, y], { means, weights, width }) {
  const terms = means.map(([a, b], m) => Math.log(weights[m] + 1e-300) - ((x - a) ** 2 + (y - b) ** 2) / (2 * width ** 2));
  return logSumExp(terms) - Math.log(2 * Math.PI * width ** 2);
}

// Mass of the prior where the decoder says a good answer with at least `goodAt`.
export function coverage(prior, nodes = planeNodes()) {
  const places = modes();
  return prior.means.reduce((sum, [a, b], m) => sum + prior.weights[m] * nodes.reduce((part, [x, y, weight]) =>
    part + (isGood([a + prior.width * x, b + prior.width * y], places) ? weight : 0), 0), 0);
}

// S = E_q log p(x|z) - KL(q || p) of the first answer, for a posterior of standard deviation `sd` on its mode.
export function score(prior, sd, nodes = planeNodes()) {
  const places = modes();
  const [a, b] = places[0];
  let reconstruction = 0, gap = 0;
  for (const [x, y, weight] of nodes) {
    const z = [a + sd * x, b + sd * y];
    const logQ = -0.5 * (x * x + y * y) - Math.log(2 * Math.PI * sd ** 2);
    reconstruction += weight * logAnswers(z, places)[0];
    gap += weight * (logQ - logPrior(z, prior));
  }
  return { score: reconstruction - gap, reconstruction, gap };
}
