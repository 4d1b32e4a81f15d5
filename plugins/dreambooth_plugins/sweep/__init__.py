"""`dbt sweep` and `dbt work`: many jobs of one template, by any number of workers.

    command   what `dbt` offers            file      what sweep.yaml says, typed
    checking  a sweep against its job      space     drawn values and the job they make
    search    Optuna's samplers, pruners   storage   Optuna's storages, and a server that is away
    folder    a study on disk              trials    which attempts belong together, taking over
    running   one trial as a run           worker    the loop of a worker      results  the end

Optuna (extra `sweep`) is imported by `search`, `storage`, `trials` and `worker` alone, inside
functions.
"""
