"""The inference app: takes recordings from people, asks the model by messages, shows the answers. See docs/app.md."""
