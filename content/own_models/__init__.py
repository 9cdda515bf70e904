"""Your models and your registry, for the services of forecast_service/.

families            kinds of models: how each is fitted, and becomes an ONNX graph
forecaster          an ONNX graph that forecasts
artifact            models of several kinds as bytes, in one store
registry            MLflow's: what is champion there is put into the store
"""
