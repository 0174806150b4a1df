"""A model as a page that computes in the browser: one HTML file, or a folder for a web server."""
