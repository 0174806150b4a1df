() => { document.activeElement.select?.(); }
