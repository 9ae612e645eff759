"""The story, told on real flights: the year 2013 replayed against real processes.

Above every package; nothing imports it. `replay` drives, `report` counts what happened.
"""
