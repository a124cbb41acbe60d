"""The four suites: exactness, fidelity, needles, tasks."""
