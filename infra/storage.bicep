// The app's own storage: its deployment, the gateway's configuration, and the queues that records wait in.

param token string
param location string
param tags object
param sinks array
param private bool
param operatorRanges array
param zoneRedundant bool

resource account 'Microsoft.Storage/storageAccounts@2024-01-01' = {
  name: 'st${token}'
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: { name: zoneRedundant ? 'Standard_ZRS' : 'Standard_LRS' }
  properties: {
    // No key opens it: everybody comes with an identity.
    allowSharedKeyAccess: false
    defaultToOAuthAuthentication: true
    allowBlobPublicAccess: false
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    publicNetworkAccess: private && empty(operatorRanges) ? 'Disabled' : 'Enabled'
    networkAcls: {
      bypass: 'None'
      defaultAction: private ? 'Deny' : 'Allow'
      ipRules: [for it in operatorRanges: { value: it, action: 'Allow' }]
    }
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2024-01-01' = {
  parent: account
  name: 'default'
  properties: {
    // A configuration that was overwritten or deleted by mistake is to be had again.
    isVersioningEnabled: true
    deleteRetentionPolicy: { enabled: true, days: 14 }
  }
}

resource containers 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' = [for name in [
  'deployment'
  'configuration'
  'llamaxing-outbox'
]: {
  parent: blobs
  name: name
}]

resource queues 'Microsoft.Storage/storageAccounts/queueServices@2024-01-01' = {
  parent: account
  name: 'default'
}

resource waiting 'Microsoft.Storage/storageAccounts/queueServices/queues@2024-01-01' = [for sink in sinks: {
  parent: queues
  name: 'llamaxing-${sink}'
}]

resource poison 'Microsoft.Storage/storageAccounts/queueServices/queues@2024-01-01' = [for sink in sinks: {
  parent: queues
  name: 'llamaxing-${sink}-poison'
}]

output id string = account.id
output name string = account.name
output deploymentContainer string = '${account.properties.primaryEndpoints.blob}deployment'
