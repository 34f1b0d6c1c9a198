"""A local server: OpenAI's API and a page on an exported program. It takes the extra ``serve``."""
