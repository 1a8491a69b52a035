// The app settings: the platform's, and the gateway's own. Later ones count more.

param appName string
param storageName string
param vaultUri string
param insightsConnection string
param authMethod string
param loggingClient string
param observabilityClient string
param settings object
param secretNames object
param cosmos bool

resource storage 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: storageName
}

resource app 'Microsoft.Web/sites@2024-11-01' existing = {
  name: appName
}

var platform = {
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__blobServiceUri: storage.properties.primaryEndpoints.blob
  AzureWebJobsStorage__queueServiceUri: storage.properties.primaryEndpoints.queue
  AzureWebJobsStorage__tableServiceUri: storage.properties.primaryEndpoints.table
  APPLICATIONINSIGHTS_CONNECTION_STRING: insightsConnection
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'Authorization=AAD'
  AzureWebJobsDisableHomepage: 'true'
  PYTHON_ENABLE_INIT_INDEXING: '1'
  // Unlimited: at this age the host restarts a worker and cuts every stream in it. stream_max_age ends them one by one.
  AzureFunctionsJobHost__functionTimeout: '-1'
}
var gateway = {
  MODELS_SOURCE: 'blob:configuration/models.json'
  IDENTITIES_SOURCE: 'blob:configuration/identities.json'
  AUTH_METHOD: authMethod
  LOGGING_CLIENT: loggingClient
  OBSERVABILITY_CLIENT: observabilityClient
  OUTBOX: 'azure_queue'
}
// What Cosmos DB takes of one document.
var database = cosmos ? { LOGGING_CLIENT_MONGODB_DOCUMENT_LIMIT: '2000000' } : {}
var references = toObject(items(secretNames), it => it.key, it => '@Microsoft.KeyVault(SecretUri=${vaultUri}secrets/${it.value})')

resource appSettings 'Microsoft.Web/sites/config@2024-11-01' = {
  parent: app
  name: 'appsettings'
  properties: union(platform, gateway, database, settings, references)
}
