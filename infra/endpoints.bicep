// Private endpoints, and the names by which they are found in the virtual network.

param token string
param location string
param tags object
param networkId string
param subnetId string
param storageId string
param vaultId string
param cosmosId string
param appId string

var suffix = environment().suffixes.storage
var always = [
  { name: 'blob', of: storageId, zone: 'privatelink.blob.${suffix}' }
  { name: 'queue', of: storageId, zone: 'privatelink.queue.${suffix}' }
  { name: 'table', of: storageId, zone: 'privatelink.table.${suffix}' }
  { name: 'vault', of: vaultId, zone: 'privatelink.vaultcore.azure.net' }
]
var database = empty(cosmosId) ? [] : [{ name: 'MongoDB', of: cosmosId, zone: 'privatelink.mongo.cosmos.azure.com' }]
var gateway = empty(appId) ? [] : [{ name: 'sites', of: appId, zone: 'privatelink.azurewebsites.net' }]
var places = concat(always, database, gateway)

resource zones 'Microsoft.Network/privateDnsZones@2024-06-01' = [for place in places: {
  name: place.zone
  location: 'global'
  tags: tags
}]

resource links 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = [for (place, i) in places: {
  parent: zones[i]
  name: 'vnet-${token}'
  location: 'global'
  properties: {
    registrationEnabled: false
    virtualNetwork: { id: networkId }
  }
}]

resource endpoints 'Microsoft.Network/privateEndpoints@2024-05-01' = [for place in places: {
  name: 'pe-${toLower(place.name)}-${token}'
  location: location
  tags: tags
  properties: {
    subnet: { id: subnetId }
    privateLinkServiceConnections: [
      {
        name: place.name
        properties: { privateLinkServiceId: place.of, groupIds: [place.name] }
      }
    ]
  }
}]

resource names 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-05-01' = [for (place, i) in places: {
  parent: endpoints[i]
  name: 'default'
  properties: {
    privateDnsZoneConfigs: [{ name: 'zone', properties: { privateDnsZoneId: zones[i].id } }]
  }
}]
