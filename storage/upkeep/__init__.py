"""Looking after a cache: names, differences, what is damaged, and what nobody needs any more."""
