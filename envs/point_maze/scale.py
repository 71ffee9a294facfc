"""Numbers of the point maze, in blocks and seconds."""

# Of the ball: a fifth of a corridor's width, see `shortest_path`.
RADIUS = 0.2

CONTROL_SECONDS = 0.1

# Steps of the simulation in a control step.
SUBSTEPS = 10

# Mass over damping: without a force the ball rolls on by its velocity times this. It takes a few
# control steps to turn or stop, so that a plan that ignores velocity is thrown off its way.
COAST_SECONDS = 0.2
