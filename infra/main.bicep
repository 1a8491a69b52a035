// llamaxing on Azure Functions, Flex Consumption: `azd up`. The README's "On Azure Functions" says what each part is for.
targetScope = 'subscription'

@description('Name of the environment, from which all names are made.')
@minLength(1)
@maxLength(40)
param environmentName string

@description('The region.')
param location string

@description('Object id of whoever deploys: may write the configuration and the secrets. Empty: nobody may.')
param deployerId string = ''

@description('User, or ServicePrincipal where a pipeline deploys.')
@allowed(['User', 'Group', 'ServicePrincipal'])
param deployerType string = 'User'

// What the gateway is told

@description('How callers are known: the setting AUTH_METHOD.')
param authMethod string = 'apikey'

@description('Where records go: the setting LOGGING_CLIENT. mongodb needs cosmos, or LOGGING_CLIENT_MONGODB_URI among the secrets.')
@allowed(['none', 'mongodb'])
param loggingClient string = 'none'

@description('Where traces go: the setting OBSERVABILITY_CLIENT.')
@allowed(['none', 'langfuse'])
param observabilityClient string = 'none'

@description('Further settings of the gateway, by their names in upper case.')
param settings object = {}

@description('Settings whose values are secrets of the vault: the name of each secret by the name of the setting.')
param secretNames object = {}

@description('Resource ids of the Azure OpenAI accounts that the gateway calls by its identity.')
param openAiAccounts array = []

// How it scales

// A stream takes some 80 KB, and 0.1 ms of a processor for each event: a hundred of 50 events a second are half of one.
@description('Calls and streams that one instance answers at once, before there is another instance.')
@minValue(1)
@maxValue(1000)
param perInstanceConcurrency int = 100

@description('Instances that are always there. Two: an update then replaces one after the other.')
@minValue(0)
param alwaysReadyInstances int = 2

@description('Instances at the most.')
@minValue(1)
@maxValue(1000)
param maximumInstances int = 100

@description('Memory of an instance, and with it of a processor.')
@allowed([512, 2048, 4096])
param instanceMemoryMB int = 2048

@description('The Python that it runs on.')
@allowed(['3.11', '3.12', '3.13'])
param pythonVersion string = '3.13'

@description('Updates replace one instance after the other. Where the region has no such updates yet: false.')
param rollingUpdates bool = true

@description('Instances, and copies of the storage, in several zones of the region.')
param zoneRedundant bool = false

// Who reaches it

@description('A virtual network: storage, vault and database are reached in it alone.')
param virtualNetwork bool = false

@description('With a virtual network: whether the gateway itself is reached in it alone.')
param privateGateway bool = false

@description('Address ranges that may call the gateway, such as the public address of API Management. With none of these four everybody may.')
param allowedRanges array = []

@description('Service tags that may call it, such as ApiManagement.WestEurope.')
param allowedServiceTags array = []

@description('Resource ids of subnets that may call it, such as the one of API Management.')
param allowedSubnets array = []

@description('The id of the one Front Door that may call it.')
param frontDoorId string = ''

@description('With a virtual network: address ranges from which people may still reach storage and vault.')
param operatorRanges array = []

// Easy Auth

@description('Client id of the app registration that Easy Auth takes tokens for. Empty: Easy Auth is off.')
param easyAuthClientId string = ''

@description('Whom these tokens are for. Empty: the client id and its api:// URI.')
param easyAuthAudiences array = []

@description('Client ids of the applications that may call. Empty: all of the tenant.')
param easyAuthApplications array = []

// What stands beside it

@description('An account of Azure Cosmos DB for MongoDB, for LOGGING_CLIENT=mongodb.')
param cosmos bool = false

@description('Days after which it deletes a record. 0: never.')
@minValue(0)
param keepDays int = 0

@description('Who is told of an alert. Empty: it is only to be seen in the portal.')
param alertEmail string = ''

@description('Seconds that a record may wait before that is an alert. Not below the 600 after which the gateway tells of it.')
@minValue(600)
param oldestRecord int = 900

var token = toLower(uniqueString(subscription().id, environmentName, location))
var tags = { 'azd-env-name': environmentName }
var sinks = filter([loggingClient, observabilityClient], it => it != 'none')

resource group 'Microsoft.Resources/resourceGroups@2024-03-01' = {
  name: 'rg-${environmentName}'
  location: location
  tags: tags
}

module monitoring 'monitoring.bicep' = {
  name: 'monitoring'
  scope: group
  params: {
    token: token
    location: location
    tags: tags
    alertEmail: alertEmail
    oldestRecord: oldestRecord
  }
}

module network 'network.bicep' = if (virtualNetwork) {
  name: 'network'
  scope: group
  params: {
    token: token
    location: location
    tags: tags
  }
}

module storage 'storage.bicep' = {
  name: 'storage'
  scope: group
  params: {
    token: token
    location: location
    tags: tags
    sinks: sinks
    private: virtualNetwork
    operatorRanges: operatorRanges
    zoneRedundant: zoneRedundant
  }
}

module vault 'vault.bicep' = {
  name: 'vault'
  scope: group
  params: {
    token: token
    location: location
    tags: tags
    private: virtualNetwork
    operatorRanges: operatorRanges
  }
}

module database 'cosmos.bicep' = if (cosmos) {
  name: 'cosmos'
  scope: group
  params: {
    token: token
    location: location
    tags: tags
    vaultName: vault.outputs.name
    keepDays: keepDays
    private: virtualNetwork
  }
}

module app 'app.bicep' = {
  name: 'app'
  scope: group
  params: {
    token: token
    location: location
    tags: tags
    pythonVersion: pythonVersion
    deploymentContainer: storage.outputs.deploymentContainer
    perInstanceConcurrency: perInstanceConcurrency
    alwaysReadyInstances: alwaysReadyInstances
    maximumInstances: maximumInstances
    instanceMemoryMB: instanceMemoryMB
    rollingUpdates: rollingUpdates
    zoneRedundant: zoneRedundant
    subnetId: virtualNetwork ? network.outputs.appSubnetId : ''
    public: !(virtualNetwork && privateGateway)
    allowedRanges: allowedRanges
    allowedServiceTags: allowedServiceTags
    allowedSubnets: allowedSubnets
    frontDoorId: frontDoorId
    easyAuthClientId: easyAuthClientId
    easyAuthAudiences: easyAuthAudiences
    easyAuthApplications: easyAuthApplications
  }
}

module endpoints 'endpoints.bicep' = if (virtualNetwork) {
  name: 'endpoints'
  scope: group
  params: {
    token: token
    location: location
    tags: tags
    networkId: virtualNetwork ? network.outputs.id : ''
    subnetId: virtualNetwork ? network.outputs.endpointsSubnetId : ''
    storageId: storage.outputs.id
    vaultId: vault.outputs.id
    cosmosId: cosmos ? database.outputs.id : ''
    appId: privateGateway ? app.outputs.id : ''
  }
}

module roles 'roles.bicep' = {
  name: 'roles'
  scope: group
  params: {
    appPrincipalId: app.outputs.principalId
    deployerId: deployerId
    deployerType: deployerType
    storageName: storage.outputs.name
    vaultName: vault.outputs.name
    insightsName: monitoring.outputs.insightsName
  }
}

module openAi 'openai.bicep' = [for (id, i) in openAiAccounts: {
  name: 'openai-${i}'
  scope: resourceGroup(split(id, '/')[2], split(id, '/')[4])
  params: {
    accountName: last(split(id, '/'))
    principalId: app.outputs.principalId
  }
}]

// After the roles, so that what a setting refers to can be read when the app starts with it.
module appSettings 'settings.bicep' = {
  name: 'settings'
  scope: group
  dependsOn: [roles]
  params: {
    appName: app.outputs.name
    storageName: storage.outputs.name
    vaultUri: vault.outputs.uri
    insightsConnection: monitoring.outputs.connectionString
    authMethod: authMethod
    loggingClient: loggingClient
    observabilityClient: observabilityClient
    settings: settings
    secretNames: cosmos ? union({ LOGGING_CLIENT_MONGODB_URI: database.outputs.secretName }, secretNames) : secretNames
    cosmos: cosmos
  }
}

output AZURE_RESOURCE_GROUP string = group.name
output AZURE_FUNCTION_APP_NAME string = app.outputs.name
output AZURE_STORAGE_ACCOUNT string = storage.outputs.name
output AZURE_KEY_VAULT_NAME string = vault.outputs.name
output GATEWAY_URL string = app.outputs.url
