"""Prints every config key as a table in Markdown, for docs/configuration.md: `python -m gan_jax.config`."""

from gan_jax.config.schema import markdown

if __name__ == "__main__":
    print(markdown())
