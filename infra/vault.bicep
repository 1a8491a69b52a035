// The secrets that settings refer to: keys of upstreams, ID_SECRET, the database's URI. None is in these templates.

param token string
param location string
param tags object
param private bool
param operatorRanges array

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' = {
  name: 'kv-${token}'
  location: location
  tags: tags
  properties: {
    tenantId: subscription().tenantId
    sku: { family: 'A', name: 'standard' }
    enableRbacAuthorization: true
    enableSoftDelete: true
    enablePurgeProtection: true
    publicNetworkAccess: private && empty(operatorRanges) ? 'Disabled' : 'Enabled'
    networkAcls: {
      // Resource Manager writes the database's URI.
      bypass: 'AzureServices'
      defaultAction: private ? 'Deny' : 'Allow'
      ipRules: [for it in operatorRanges: { value: it }]
    }
  }
}

output id string = vault.id
output name string = vault.name
output uri string = vault.properties.vaultUri
