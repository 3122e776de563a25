// What every page has: making elements, light and dark, the embedded data.

// An element with these properties and children; text becomes text nodes, never markup.
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// The value that the page embeds under this id (`Page::data`).
function embedded(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

const systemDark = window.matchMedia('(prefers-color-scheme: dark)');

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === 'dark' : systemDark.matches;
}

// Calls `changed` whenever the page turns from light to dark or back.
function onTheme(changed) {
  systemDark.addEventListener('change', changed);
  new MutationObserver(changed).observe(document.documentElement, { attributeFilter: ['data-theme'] });
}

for (const button of document.querySelectorAll('button.theme')) {
  const label = () => {
    button.textContent = isDark() ? 'Light' : 'Dark';
  };
  button.addEventListener('click', () => {
    document.documentElement.dataset.theme = isDark() ? 'light' : 'dark';
  });
  button.hidden = false;
  onTheme(label);
  label();
}
