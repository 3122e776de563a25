// The page of a report.

// A long table shows its first rows; a button shows all. Sorting decides which are the first.
for (const table of document.querySelectorAll('table.sortable')) {
  const rows = table.tBodies[0].rows.length;
  if (rows <= 12) continue;
  table.classList.add('short');
  const button = make('button', { type: 'button', className: 'all', textContent: `Show all ${rows}` });
  button.addEventListener('click', () => {
    const short = table.classList.toggle('short');
    button.textContent = short ? `Show all ${rows}` : 'Show fewer';
  });
  table.parentElement.after(button);
}

// A function named in a table is searched in the flame graph; one that is not there under its
// whole name by a part of it.
const place = document.getElementById('flame');
if (place) {
  const graph = flame(place, embedded('profile'), { height: 420 });
  for (const name of document.querySelectorAll('#cpu td code, #cpu ul.tree code')) {
    const search = () => {
      if (graph.search(`"${name.textContent}"`) === 0) graph.search(name.textContent);
      place.scrollIntoView({ block: 'nearest' });
    };
    name.classList.add('search');
    name.title = 'Search in the flame graph';
    name.addEventListener('click', search);
  }
}
