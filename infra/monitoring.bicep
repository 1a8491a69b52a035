// Application Insights, and two alerts. Both read the lines `outbox sink=… waiting=… poison=… oldest=…` of the gateway's log,
// which come every five minutes, and with each record that has to wait again and is late.

param token string
param location string
param tags object
param alertEmail string
param oldestRecord int

var lines = '''
traces
| where message contains "outbox sink="
| extend sink = extract("sink=([^ ]+)", 1, message)
| extend poison = toint(extract("poison=([0-9]+)", 1, message))
| extend oldest = toint(extract("oldest=([0-9]+)", 1, message))
'''

resource workspace 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: 'log-${token}'
  location: location
  tags: tags
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: 30
  }
}

resource insights 'Microsoft.Insights/components@2020-02-02' = {
  name: 'appi-${token}'
  location: location
  tags: tags
  kind: 'web'
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: workspace.id
    // The connection string alone writes nothing here: it takes the app's identity.
    DisableLocalAuth: true
  }
}

resource told 'Microsoft.Insights/actionGroups@2023-01-01' = if (!empty(alertEmail)) {
  name: 'ag-${token}'
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    groupShortName: 'llamaxing'
    emailReceivers: [
      { name: 'operators', emailAddress: alertEmail, useCommonAlertSchema: true }
    ]
  }
}

resource poison 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = {
  name: 'outbox-poison-${token}'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    displayName: 'llamaxing: records that can never be delivered'
    description: 'A poison queue is not empty. Mend the cause; then `python -m llamaxing outbox replay`.'
    enabled: true
    severity: 1
    scopes: [insights.id]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT15M'
    autoMitigate: true
    criteria: {
      allOf: [
        {
          query: '${lines}| where isnotnull(poison)'
          metricMeasureColumn: 'poison'
          timeAggregation: 'Maximum'
          operator: 'GreaterThan'
          threshold: 0
          dimensions: [{ name: 'sink', operator: 'Include', values: ['*'] }]
          failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
        }
      ]
    }
    actions: { actionGroups: empty(alertEmail) ? [] : [told.id] }
  }
}

resource late 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = {
  name: 'outbox-late-${token}'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    displayName: 'llamaxing: records wait too long'
    description: 'The oldest record in the outbox is too old: its sink is away, or refuses the gateway.'
    enabled: true
    severity: 2
    scopes: [insights.id]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT15M'
    autoMitigate: true
    criteria: {
      allOf: [
        {
          query: '${lines}| where isnotnull(oldest)'
          metricMeasureColumn: 'oldest'
          timeAggregation: 'Maximum'
          operator: 'GreaterThan'
          threshold: oldestRecord
          dimensions: [{ name: 'sink', operator: 'Include', values: ['*'] }]
          failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
        }
      ]
    }
    actions: { actionGroups: empty(alertEmail) ? [] : [told.id] }
  }
}

output insightsName string = insights.name
output connectionString string = insights.properties.ConnectionString
