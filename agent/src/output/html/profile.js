// The page of one profile.
const graph = flame(document.getElementById('flame'), embedded('profile'), { global: true });

// A function of the table is searched in the graph; one that is not there under its whole name
// by a part of it.
for (const button of document.querySelectorAll('button[data-function]')) {
  button.addEventListener('click', () => {
    const name = button.dataset.function;
    if (graph.search(`"${name}"`) === 0) graph.search(name);
    document.getElementById('flame').scrollIntoView({ block: 'nearest' });
  });
}
