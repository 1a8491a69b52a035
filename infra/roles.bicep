// Who may do what: the app by its identity, and whoever deploys.

param appPrincipalId string
param deployerId string
param deployerType string
param storageName string
param vaultName string
param insightsName string

var blobOwner = 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b' // Storage Blob Data Owner
var blobContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe' // Storage Blob Data Contributor
var queueContributor = '974c5e8b-45b9-4653-ba55-5f855dd0fb88' // Storage Queue Data Contributor
var tableContributor = '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3' // Storage Table Data Contributor
var secretsUser = '4633458b-17de-408a-b874-0445c86b69e6' // Key Vault Secrets User
var secretsOfficer = 'b86a8fe4-44ce-4948-aee5-eccb2c155cd7' // Key Vault Secrets Officer
var metricsPublisher = '3913510d-42f4-4e42-8a64-420c390055eb' // Monitoring Metrics Publisher

var roles = 'Microsoft.Authorization/roleDefinitions'
var app = { id: appPrincipalId, type: 'ServicePrincipal' }
var deployers = empty(deployerId) ? [] : [{ id: deployerId, type: deployerType }]
var appOnStorage = [for role in [blobOwner, queueContributor, tableContributor]: { who: app, role: role }]
var deployerOnStorage = [for it in deployers: { who: it, role: blobContributor }]
var deployerOnVault = [for it in deployers: { who: it, role: secretsOfficer }]

resource storage 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: storageName
}

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' existing = {
  name: vaultName
}

resource insights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: insightsName
}

resource onStorage 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for it in concat(appOnStorage, deployerOnStorage): {
  name: guid(storage.id, it.who.id, it.role)
  scope: storage
  properties: {
    principalId: it.who.id
    principalType: it.who.type
    roleDefinitionId: subscriptionResourceId(roles, it.role)
  }
}]

resource onVault 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for it in concat([{ who: app, role: secretsUser }], deployerOnVault): {
  name: guid(vault.id, it.who.id, it.role)
  scope: vault
  properties: {
    principalId: it.who.id
    principalType: it.who.type
    roleDefinitionId: subscriptionResourceId(roles, it.role)
  }
}]

resource onInsights 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(insights.id, app.id, metricsPublisher)
  scope: insights
  properties: {
    principalId: app.id
    principalType: app.type
    roleDefinitionId: subscriptionResourceId(roles, metricsPublisher)
  }
}
