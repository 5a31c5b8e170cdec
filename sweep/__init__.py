"""Many runs: the search space, the plan, the search itself. The only home of ray, optuna and mlflow."""
