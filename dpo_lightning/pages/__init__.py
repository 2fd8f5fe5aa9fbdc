"""HTML pages that need no other file and no network: the templates, and the function that fills them."""
