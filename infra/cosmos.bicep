// Azure Cosmos DB for MongoDB, serverless. Its URI, which holds its key, goes into the vault and nowhere else.

param token string
param location string
param tags object
param vaultName string
param keepDays int
param private bool

var expiry = keepDays == 0 ? [] : [
  { key: { keys: ['_ts'] }, options: { expireAfterSeconds: keepDays * 86400 } }
]

resource account 'Microsoft.DocumentDB/databaseAccounts@2024-11-15' = {
  name: 'cosmos-${token}'
  location: location
  tags: tags
  kind: 'MongoDB'
  properties: {
    databaseAccountOfferType: 'Standard'
    apiProperties: { serverVersion: '7.0' }
    capabilities: [{ name: 'EnableMongo' }, { name: 'EnableServerless' }]
    locations: [{ locationName: location, failoverPriority: 0 }]
    minimalTlsVersion: 'Tls12'
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
  }
}

resource database 'Microsoft.DocumentDB/databaseAccounts/mongodbDatabases@2024-11-15' = {
  parent: account
  name: 'llamaxing'
  properties: {
    resource: { id: 'llamaxing' }
  }
}

// The database deletes by `_ts`, which a client cannot ask for by an index of dates.
resource records 'Microsoft.DocumentDB/databaseAccounts/mongodbDatabases/collections@2024-11-15' = {
  parent: database
  name: 'apicalls'
  properties: {
    resource: {
      id: 'apicalls'
      shardKey: { _id: 'Hash' }
      indexes: concat([{ key: { keys: ['_id'] } }], expiry)
    }
  }
}

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' existing = {
  name: vaultName
}

resource uri 'Microsoft.KeyVault/vaults/secrets@2023-07-01' = {
  parent: vault
  name: 'mongodb-uri'
  properties: { value: account.listConnectionStrings().connectionStrings[0].connectionString }
}

output id string = account.id
output secretName string = uri.name
