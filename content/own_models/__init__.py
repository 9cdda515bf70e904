"""Your data, your models, your registry, for the services of forecast_service/.

long_table          a table of customers, dates and values, made what training takes
families            kinds of models: how each is fitted, and becomes an ONNX graph
forecaster          an ONNX graph that forecasts
artifact            models of several kinds as bytes, in one store
registry            MLflow's: what is champion there is put into the store
"""
