"""Tool-calling agents: tasks, tools, sessions, the batching engine and training."""
