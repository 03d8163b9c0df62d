"""The studio: a page in the browser, mounted in the server."""
