() => document.querySelector('#stage').scrollIntoView({behavior: 'smooth', block: 'nearest'})
