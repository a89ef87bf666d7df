"""When passes run: flows on Prefect, what is deployed there, and a scheduler for one process.

The only room that imports Prefect.
"""
