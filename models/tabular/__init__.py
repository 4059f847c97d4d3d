"""The multitask network for any table: `config` says what is read, `run` trains and evaluates."""
