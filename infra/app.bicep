// The Functions app on Flex Consumption, who may call it, and Easy Auth before it.

param token string
param location string
param tags object
param pythonVersion string
param deploymentContainer string
param perInstanceConcurrency int
param alwaysReadyInstances int
param maximumInstances int
param instanceMemoryMB int
param rollingUpdates bool
param zoneRedundant bool
param subnetId string
param public bool
param allowedRanges array
param allowedServiceTags array
param allowedSubnets array
param frontDoorId string
param easyAuthClientId string
param easyAuthAudiences array
param easyAuthApplications array

var ranges = [for (it, i) in allowedRanges: {
  name: 'range-${i}'
  priority: 100 + i
  action: 'Allow'
  ipAddress: it
}]
var serviceTags = [for (it, i) in allowedServiceTags: {
  name: 'tag-${i}'
  priority: 200 + i
  action: 'Allow'
  tag: 'ServiceTag'
  ipAddress: it
}]
var subnets = [for (id, i) in allowedSubnets: {
  name: 'subnet-${i}'
  priority: 300 + i
  action: 'Allow'
  vnetSubnetResourceId: id
}]
// The tag stands for every Front Door there is; the header, which it sets itself, for this one.
var frontDoor = empty(frontDoorId) ? [] : [
  {
    name: 'front-door'
    priority: 400
    action: 'Allow'
    tag: 'ServiceTag'
    ipAddress: 'AzureFrontDoor.Backend'
    headers: { 'x-azure-fdid': [frontDoorId] }
  }
]
var restrictions = concat(ranges, serviceTags, subnets, frontDoor)

resource plan 'Microsoft.Web/serverfarms@2024-11-01' = {
  name: 'plan-${token}'
  location: location
  tags: tags
  kind: 'functionapp'
  sku: { tier: 'FlexConsumption', name: 'FC1' }
  properties: {
    reserved: true
    zoneRedundant: zoneRedundant
  }
}

resource app 'Microsoft.Web/sites@2024-11-01' = {
  name: 'func-${token}'
  location: location
  tags: union(tags, { 'azd-service-name': 'gateway' })
  kind: 'functionapp,linux'
  // The app's own, so that no setting has to say whose: storage, vault, Azure OpenAI and Application Insights know it.
  identity: { type: 'SystemAssigned' }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    clientAffinityEnabled: false
    publicNetworkAccess: public ? 'Enabled' : 'Disabled'
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    siteConfig: {
      minTlsVersion: '1.2'
      http20Enabled: true
      ipSecurityRestrictions: restrictions
      ipSecurityRestrictionsDefaultAction: empty(restrictions) ? 'Allow' : 'Deny'
      // Where deployments go to. It takes tokens of Entra ID alone, see below.
      scmIpSecurityRestrictionsUseMain: false
    }
    functionAppConfig: {
      runtime: { name: 'python', version: pythonVersion }
      deployment: {
        storage: {
          type: 'blobContainer'
          value: deploymentContainer
          authentication: { type: 'SystemAssignedIdentity' }
        }
      }
      scaleAndConcurrency: {
        instanceMemoryMB: instanceMemoryMB
        maximumInstanceCount: maximumInstances
        alwaysReady: alwaysReadyInstances == 0 ? [] : [{ name: 'http', instanceCount: alwaysReadyInstances }]
        triggers: { http: { perInstanceConcurrency: perInstanceConcurrency } }
      }
      // An instance that is replaced takes no new calls and ends its streams first.
      siteUpdateStrategy: { type: rollingUpdates ? 'RollingUpdate' : 'Recreate' }
    }
  }
}

resource basicLogins 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2024-11-01' = [for name in ['scm', 'ftp']: {
  parent: app
  name: name
  properties: { allow: false }
}]

resource easyAuth 'Microsoft.Web/sites/config@2024-11-01' = if (!empty(easyAuthClientId)) {
  parent: app
  name: 'authsettingsV2'
  properties: {
    platform: { enabled: true }
    globalValidation: {
      requireAuthentication: true
      // Programs call: a sign-in page is no answer to them.
      unauthenticatedClientAction: 'Return401'
      excludedPaths: ['/health/live', '/health/ready']
    }
    identityProviders: {
      azureActiveDirectory: {
        enabled: true
        registration: {
          clientId: easyAuthClientId
          openIdIssuer: '${environment().authentication.loginEndpoint}${subscription().tenantId}/v2.0'
        }
        validation: {
          allowedAudiences: empty(easyAuthAudiences) ? [easyAuthClientId, 'api://${easyAuthClientId}'] : easyAuthAudiences
          // An empty list would let no application in.
          defaultAuthorizationPolicy: empty(easyAuthApplications) ? {} : { allowedApplications: easyAuthApplications }
        }
      }
    }
    login: { tokenStore: { enabled: false } }
  }
}

output id string = app.id
output name string = app.name
output principalId string = app.identity.principalId
output url string = 'https://${app.properties.defaultHostName}'
