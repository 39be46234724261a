"""The engine process: folds a run's log, decides what is next, launches attempts, records what came of them."""
