// Brings the widgets of a page to life. Each lives in a file of its own name and gets its place and its data.
const places = document.querySelectorAll("[data-widget]");

for (const place of places) {
  try {
    const { start } = await import(`./${place.dataset.widget}.js`);
    const data = place.dataset.source ? await (await fetch(place.dataset.source)).json() : null;
    start(place, data);
    place.dataset.ready = "yes";
  } catch (error) {
    place.dataset.ready = "no"; // the still picture stays
    console.error(`widget ${place.dataset.widget}: ${error}`);
  }
}
document.documentElement.dataset.widgets = "ready";
