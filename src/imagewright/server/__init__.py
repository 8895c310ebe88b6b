"""The OpenAI-compatible server: routes, keys, budgets, durable jobs. Needs the extra `serve`."""
