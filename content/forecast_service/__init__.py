"""Serve a forecasting model per customer: what a fork keeps, and all that the image needs of ours.

Imports run downwards only:

    upkeep                            the command that keeps forecasts good
    fleet_upkeep  upkeep_report       all customers, in Ray tasks; what was found
    customer_upkeep  lease            one of them; one process at a time
    judge  versions                   how forecasts did; what served before
    mend  long_table                  a model made anew, and its trial; a table, as series
    service                           a replica of the production service, but for its decorators
    contract  tokens  metrics         what surrounds a model in production
    keys                              with which tokens are checked
    replica  proxy_guard              what Ray Serve knows of a request; what surrounds its proxy
    reloader  loader                  how a model comes into memory, and stays as new as the store's
    memory  freed_memory              which models are in memory; what was freed is given back
    store  artifact  model            where a model lies, its bytes, the model
    settings  customer_ids  errors    the ground floor
"""
