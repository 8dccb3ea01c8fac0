// The same as dps.json, value for value.

@description('Name of the provisioning service, unique in the cloud.')
@minLength(3)
@maxLength(64)
param name string

@description('Region of the provisioning service.')
param location string = resourceGroup().location

@description('An IoT hub of the same resource group to assign devices to; empty for none.')
param iotHubName string = ''

@description('The hub\'s access policy whose key the provisioning service keeps.')
param iotHubPolicy string = 'iothubowner'

resource dps 'Microsoft.Devices/ProvisioningServices@2020-01-01' = {
  name: name
  location: location
  sku: {
    name: 'S1'
    capacity: 1
  }
  properties: {
    // The service's documentation has this property in this version of the API, Bicep's types do not.
    #disable-next-line BCP037
    minTlsVersion: '1.2'
    allocationPolicy: 'Hashed'
    iotHubs: empty(iotHubName) ? [] : [
      {
        connectionString: format('HostName={0};SharedAccessKeyName={1};SharedAccessKey={2}', reference(resourceId('Microsoft.Devices/IotHubs', iotHubName), '2021-07-02').hostName, iotHubPolicy, listKeys(resourceId('Microsoft.Devices/IotHubs/IotHubKeys', iotHubName, iotHubPolicy), '2021-07-02').primaryKey)
        location: reference(resourceId('Microsoft.Devices/IotHubs', iotHubName), '2021-07-02', 'Full').location
      }
    ]
  }
}

output idScope string = dps.properties.idScope
output host string = dps.properties.deviceProvisioningHostName
