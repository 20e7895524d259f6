"""The pages that people touch: the nurse's, the collector's, the engineer's. See docs/app-pages.md."""
